-- Joins the generation, or begins one. ARGV[4] is the generation that has lost counts, '' if
-- the sidecar has not joined one before. ARGV[5..]: a name for a new one, then for each
-- reservation in progress: id, place of its count in KEYS, amount, and whether it is recorded.
-- A recorded one comes with the sums of the audit log, and is not added.
local now = org[1]
if not now or now == gen then
  redis.call('DEL', KEYS[1])
  now = ARGV[5]
  redis.call('HSET', KEYS[1], 'gen', now)
  org[2] = false
end
redis.call('HSET', KEYS[1], 's:' .. me, ARGV[2], 'j:' .. me, now, 'b:' .. me, sec)
redis.call('DEL', KEYS[2])
for i = 6, #ARGV, 4 do
  local key, recorded = KEYS[tonumber(ARGV[i + 1])], ARGV[i + 3] == '1'
  local held = redis.call('HGET', KEYS[2], ARGV[i]) or (recorded and 'sum ' or '') .. now
  redis.call('HSET', KEYS[2], ARGV[i], held .. '\n' .. ARGV[i + 2] .. ' ' .. key)
  if not recorded then
    local c = redis.call('HMGET', key, 'gen', 'reserved')
    if c[1] ~= now then
      redis.call('DEL', key)
      redis.call('HSET', key, 'gen', now, 'charged', '0')
      redis.call('EXPIRE', key, 8640000)
      c[2] = '0'
    end
    redis.call('HSET', key, 'reserved', add(c[2], ARGV[i + 2]))
  end
end
return {now, clock[1], clock[2], org[2] == '1' and '1' or ''}
