-- Replaces what a request holds by what it has used. KEYS as in reserve.lua.
-- ARGV[5..]: id, whether the result of its reservation is not known, the farthest debt, an
-- instant before its completion was recorded, in microseconds; then three for each limit. A request that holds nothing changes nothing.
local id = ARGV[5]
local held = redis.call('HGET', KEYS[2], id)
local had = held
if held then
  redis.call('HDEL', KEYS[2], id)
elseif redis.call('GET', KEYS[3]) == 't' then
  had = true
  redis.call('DEL', KEYS[3])
end
if ARGV[6] == '1' then redis.call('SET', KEYS[3], 'x', 'PX', 600000) end -- it may still arrive
local of = held and string.match(held, '^[^\n]*')
local done = {}
-- moved are the fields that compare.lua reads: all that was charged so far, and all that was
-- given back.
local function moved(c, amount, charge) return 'in', add(c[5] or '0', charge), 'out', add(c[6] or '0', sub(amount, charge)) end
for i = 1, #KEYS - 3 do
  local key, at = KEYS[3 + i], 8 + (i - 1) * 3
  local kind = ARGV[at + 1]
  if kind == 's' then
    redis.call('ZREM', key, id)
  elseif not had or done[key] then
  elseif kind == 'r' then -- by how much it is full later
    local d, by = ahead(key), tonumber(ARGV[at + 2])
    if by > 0 or d > 0 then full(key, math.min(d + by, tonumber(ARGV[7]))) end
  else -- amount, charge
    local c = redis.call('HMGET', key, 'gen', 'charged', 'reserved', 'read', 'in', 'out')
    if of == 'sum ' .. tostring(org[1]) then
      -- The sums that the count began with have the reservation, if they were read before
      -- the completion was recorded. Otherwise they may have the charge.
      if c[1] == org[1] and c[4] and tonumber(c[4]) < tonumber(ARGV[8]) then
        redis.call('HSET', key, 'charged', sub(add(c[2], ARGV[at + 3]), ARGV[at + 2]), moved(c, ARGV[at + 2], ARGV[at + 3]))
      end
    elseif c[3] and (kind == 'p' or of == org[1] and c[1] == org[1]) then
      redis.call('HSET', key, 'reserved', sub(c[3], ARGV[at + 2]), 'charged', add(c[2] or '0', ARGV[at + 3]), moved(c, ARGV[at + 2], ARGV[at + 3]))
    end
  end
  done[key] = true
end
return {state, clock[1], clock[2]}
