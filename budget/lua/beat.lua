-- Says that the sidecar is here. ARGV[5..]: how many sidecars serve the org (0: do not look),
-- whether to return those that are gone, and for how long a silent one counts, in seconds.
redis.call('HSET', KEYS[1], 'b:' .. me, sec)
redis.call('EXPIRE', KEYS[1], 691200)
redis.call('EXPIRE', KEYS[2], 691200)
local need, ready = tonumber(ARGV[5]), org[2] == '1'
local out = {state, clock[1], clock[2], ''}
if state == 'ok' and (need > 0 or ARGV[6] == '1') then
  local all, here, joined = redis.call('HGETALL', KEYS[1]), {}, 0
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'b:' then here[string.sub(all[i], 3)] = tonumber(all[i + 1]) > sec - tonumber(ARGV[7]) end
  end
  for i = 1, #all, 2 do
    local id = string.sub(all[i], 3)
    if string.sub(all[i], 1, 2) == 'j:' and all[i + 1] == gen and here[id] then joined = joined + 1 end
  end
  if not ready and need > 0 and joined >= need then
    ready = true
    redis.call('HSET', KEYS[1], 'ready', '1')
  end
  for id, is in pairs(here) do
    if not is and ARGV[6] == '1' then table.insert(out, id) end
  end
end
if ready then out[4] = '1' end
return out
