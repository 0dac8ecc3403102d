-- Sets counts to what the audit log has, where that is more. KEYS[3..] are the counts.
-- ARGV[5..]: for each its sum, and when it may be forgotten. It returns the sums before; a
-- count that was not known is ''.
if state ~= 'ok' then return {state, clock[1], clock[2]} end
if org[2] ~= '1' then return {'wait', clock[1], clock[2]} end
local out = {'ok', clock[1], clock[2]}
for i = 1, #KEYS - 2 do
  local key, sum = KEYS[2 + i], ARGV[3 + 2 * i]
  local c = redis.call('HMGET', key, 'gen', 'known', 'charged', 'reserved')
  if c[1] ~= gen then
    redis.call('DEL', key)
    c = {gen, false, '0', '0'}
  end
  local had = add(c[3], c[4])
  if c[2] ~= '1' then
    redis.call('HSET', key, 'gen', gen, 'known', '1', 'charged', add(c[3], sum), 'reserved', c[4],
      'read', string.format('%.0f', sec * 1000000 + micro))
    had = ''
  elseif above(sum, '0', '0', had) then
    redis.call('HSET', key, 'charged', sub(sum, c[4]))
  end
  redis.call('EXPIREAT', key, ARGV[4 + 2 * i])
  table.insert(out, had)
end
return out
