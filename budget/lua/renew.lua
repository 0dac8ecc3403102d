-- Renews the slots of requests in progress. KEYS[3..] and ARGV[6..] are a count and a request
-- each. ARGV[5] is the lease in milliseconds.
local now = sec * 1000 + math.floor(micro / 1000)
for i = 3, #KEYS do
  redis.call('ZADD', KEYS[i], now + tonumber(ARGV[5]), ARGV[3 + i])
  redis.call('PEXPIRE', KEYS[i], ARGV[5])
end
return {state, clock[1], clock[2]}
