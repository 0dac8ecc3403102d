-- Renews the slots of requests in progress. KEYS[3..] and ARGV[7..] are a count and a request
-- each. ARGV[5] is the lease in milliseconds. ARGV[6] is 1 if the store may lack some of them.
-- Otherwise one that is not there has ended since the sidecar listed it, and stays away.
local now = sec * 1000 + math.floor(micro / 1000)
for i = 3, #KEYS do
  local till, id = now + tonumber(ARGV[5]), ARGV[4 + i]
  if ARGV[6] == '1' then
    redis.call('ZADD', KEYS[i], till, id)
  else
    redis.call('ZADD', KEYS[i], 'XX', till, id)
  end
  redis.call('PEXPIRE', KEYS[i], ARGV[5])
end
return {state, clock[1], clock[2]}
