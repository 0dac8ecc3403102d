-- Charges in full what a sidecar holds that is gone. KEYS[3] is its hash, KEYS[4..] the counts
-- in it. ARGV[5]: its id, and for how long a silent one counts, in seconds.
local id = ARGV[5]
local seen = redis.call('HGET', KEYS[1], 'b:' .. id)
if state ~= 'ok' or seen and tonumber(seen) > sec - tonumber(ARGV[6]) then return {state, clock[1], clock[2]} end
local counts = {}
for i = 4, #KEYS do counts[KEYS[i]] = true end
local all, left = redis.call('HGETALL', KEYS[3]), false
for i = 1, #all, 2 do
  local known = true
  for amount, key in string.gmatch(all[i + 1], '\n(%d+) ([^\n]+)') do known = known and counts[key] end
  if known then
    local of = string.match(all[i + 1], '^[^\n]*')
    for amount, key in string.gmatch(all[i + 1], '\n(%d+) ([^\n]+)') do
      local c = redis.call('HMGET', key, 'gen', 'charged', 'reserved', 'in')
      if of == gen and c[1] == gen and c[3] then
        redis.call('HSET', key, 'reserved', sub(c[3], amount), 'charged', add(c[2], amount), 'in', add(c[4] or '0', amount))
      end
    end
    redis.call('HDEL', KEYS[3], all[i])
  else
    left = true
  end
end
if not left then redis.call('HDEL', KEYS[1], 's:' .. id, 'j:' .. id, 'b:' .. id, 'w:' .. id) end
return {state, clock[1], clock[2]}
