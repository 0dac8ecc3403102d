-- Begins counts with the sums of the audit log. KEYS[3..] are the counts. ARGV[5..]: for each
-- its sum, and when it may be forgotten. A count that is known stays.
if state ~= 'ok' then return {state, clock[1], clock[2]} end
if org[2] ~= '1' then return {'wait', clock[1], clock[2]} end
for i = 1, #KEYS - 2 do
  local key, sum = KEYS[2 + i], ARGV[3 + 2 * i]
  local c = redis.call('HMGET', key, 'gen', 'known', 'charged', 'reserved')
  if c[1] ~= gen or c[2] ~= '1' then
    if c[1] ~= gen then
      redis.call('DEL', key)
      c = {gen, false, '0', '0'}
    end
    redis.call('HSET', key, 'gen', gen, 'known', '1', 'charged', add(c[3], sum), 'reserved', c[4],
      'read', string.format('%.0f', sec * 1000000 + micro))
    redis.call('EXPIREAT', key, ARGV[4 + 2 * i])
  end
end
return {'ok', clock[1], clock[2]}
