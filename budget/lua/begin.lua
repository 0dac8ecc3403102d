-- What all scripts begin with. KEYS[1] is the org's own hash:
--   gen      the generation: it changes when counts were lost
--   ready    1: every sidecar has joined the generation, so counts may be read from the audit log
--   s:ID     the last call of a sidecar
--   j:ID     the generation that it has joined
--   b:ID     when it was last here, in seconds
--   w:ID     the audit log has all its records up to then, in microseconds
-- KEYS[2] is the hash of what this sidecar holds, by the id of the request.
-- ARGV: sidecar, number of this call, last number that got a reply, generation.
--
-- Lua's numbers are exact to 2^53. Instants are whole seconds and nanoseconds apart, and
-- money is decimal text: a hi part and a lo part of nine digits.
local clock = redis.call('TIME')
local sec, micro = tonumber(clock[1]), tonumber(clock[2])
local me, seq, acked, gen = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local org = redis.call('HMGET', KEYS[1], 'gen', 'ready', 's:' .. me)
local state = 'ok'
if gen == '' or org[1] ~= gen then
  state = 'gen'
elseif not org[3] or tonumber(org[3]) < acked then
  state = 'lost'
elseif tonumber(org[3]) < seq then
  redis.call('HSET', KEYS[1], 's:' .. me, ARGV[2])
end

local function split(text)
  local n = #text
  if n <= 9 then return 0, tonumber(text) end
  return tonumber(string.sub(text, 1, n - 9)), tonumber(string.sub(text, n - 8))
end

local function join(hi, lo)
  if hi == 0 then return string.format('%d', lo) end
  return string.format('%d%09d', hi, lo)
end

-- add returns a sum, at most 2^63-1.
local function add(a, b)
  local ahi, alo = split(a)
  local bhi, blo = split(b)
  local hi, lo = ahi + bhi, alo + blo
  if lo >= 1000000000 then hi, lo = hi + 1, lo - 1000000000 end
  if hi > 9223372036 or hi == 9223372036 and lo > 854775807 then return '9223372036854775807' end
  return join(hi, lo)
end

-- sub returns a difference, at least 0.
local function sub(a, b)
  local ahi, alo = split(a)
  local bhi, blo = split(b)
  local hi, lo = ahi - bhi, alo - blo
  if lo < 0 then hi, lo = hi - 1, lo + 1000000000 end
  if hi < 0 then return '0' end
  return join(hi, lo)
end

-- above reports whether a + b + c is above most.
local function above(a, b, c, most)
  local ahi, alo = split(a)
  local bhi, blo = split(b)
  local chi, clo = split(c)
  local mhi, mlo = split(most)
  local hi, lo = ahi + bhi + chi, alo + blo + clo
  hi, lo = hi + math.floor(lo / 1000000000), lo % 1000000000
  return hi > mhi or hi == mhi and lo > mlo
end

-- ahead returns by how many nanoseconds a rate is full later than now.
local function ahead(key)
  local tat = redis.call('GET', key)
  if not tat then return 0 end
  local s, n = string.match(tat, '^(%d+) (%d+)$')
  return math.max(0, (tonumber(s) - sec) * 1000000000 + tonumber(n) - micro * 1000)
end

-- full stores by how many nanoseconds a rate is full later than now.
local function full(key, d)
  if d <= 0 then
    redis.call('DEL', key)
    return
  end
  local n = micro * 1000 + d
  redis.call('SET', key, string.format('%d %d', sec + math.floor(n / 1000000000), n % 1000000000),
    'PX', string.format('%d', math.ceil(d / 1000000) + 1))
end
