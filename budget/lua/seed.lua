-- Begins counts with the sums of the audit log, or raises what is charged to what the log has.
-- KEYS[3..] are the counts. ARGV[5..]: whether to raise; for each its sum, and when it may be
-- forgotten. It returns what was charged before, or '' for a count that was not known.
if state ~= 'ok' then return {state, clock[1], clock[2]} end
if org[2] ~= '1' then return {'wait', clock[1], clock[2]} end
local out = {'ok', clock[1], clock[2]}
for i = 1, #KEYS - 2 do
  local key, sum = KEYS[2 + i], ARGV[4 + 2 * i]
  local c = redis.call('HMGET', key, 'gen', 'known', 'charged', 'reserved')
  if c[1] == gen and c[2] == '1' then
    if ARGV[5] == '1' and above(sum, '0', '0', c[3]) then redis.call('HSET', key, 'charged', sum) end
    table.insert(out, c[3])
  else
    if ARGV[5] == '0' then
      if c[1] ~= gen then
        redis.call('DEL', key)
        c = {gen, false, '0', '0'}
      end
      redis.call('HSET', key, 'gen', gen, 'known', '1', 'charged', add(c[3], sum), 'reserved', c[4],
        'read', string.format('%.0f', sec * 1000000 + micro))
      redis.call('EXPIREAT', key, ARGV[5 + 2 * i])
    end
    table.insert(out, '')
  end
end
return out
