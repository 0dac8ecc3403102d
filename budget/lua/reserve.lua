-- Takes a request from all limits, or from none. KEYS[3] says that a request has been here
-- and holds nothing: 't' it was taken, 'x' it has ended. KEYS[4..] are the counts.
-- ARGV[5..]: id, whether money is taken, what is held, whether anything is; then six for each
-- limit. It returns a word, the clock, and the state of each count before.
local id, money = ARGV[5], ARGV[6] == '1'
if money then
  if state ~= 'ok' then return {state, clock[1], clock[2]} end
  if org[2] ~= '1' then return {'wait', clock[1], clock[2]} end
end
local seen = redis.call('GET', KEYS[3])
if seen == 'x' then return {'ended', clock[1], clock[2]} end
local again = seen or redis.call('HEXISTS', KEYS[2], id) == 1

local now = sec * 1000 + math.floor(micro / 1000)
local count = #KEYS - 3
local out = {'', clock[1], clock[2], state}
local unknown = {'unknown', clock[1], clock[2]}
local fits, states = true, {}
for i = 1, count do
  local key, at = KEYS[3 + i], 8 + (i - 1) * 6
  local kind = ARGV[at + 1]
  if kind == 'r' then -- window, cost, whether it can ever fit, longest
    local d = math.min(ahead(key), tonumber(ARGV[at + 5]))
    local cost = tonumber(ARGV[at + 3])
    states[i] = d
    out[4 + i] = string.format('%.0f', d)
    if ARGV[at + 4] ~= '1' or cost > 0 and d + cost > tonumber(ARGV[at + 2]) then fits = false end
  elseif kind == 's' then -- most
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    local n = redis.call('ZCARD', key)
    out[4 + i] = string.format('%d', n)
    if n >= tonumber(ARGV[at + 2]) then fits = false end
  else -- 'm': most, amount, since, end of the period; 'p': the same, of no generation
    if sec < tonumber(ARGV[at + 4]) or sec >= tonumber(ARGV[at + 5]) then return {'period', clock[1], clock[2]} end
    local c = redis.call('HMGET', key, 'gen', 'known', 'charged', 'reserved')
    local charged, reserved = c[3] or '0', c[4] or '0'
    if kind == 'm' and (c[1] ~= gen or c[2] ~= '1') then
      charged, reserved = '0', '0'
      if ARGV[at + 3] ~= '0' then table.insert(unknown, tostring(i)) end
    end
    states[i] = reserved
    out[4 + i] = charged .. ' ' .. reserved
    if ARGV[at + 3] ~= '0' and above(charged, reserved, ARGV[at + 3], ARGV[at + 2]) then fits = false end
  end
end
if again then
  out[1] = 'again'
  return out
end
if not fits then -- whatever the unknown counts have: so an invented name begins no count
  out[1] = 'no'
  return out
end
if #unknown > 3 then return unknown end

local rates, taken = {}, {}
for i = 1, count do
  local key, at = KEYS[3 + i], 8 + (i - 1) * 6
  local kind = ARGV[at + 1]
  if kind == 'r' then
    rates[key] = math.max(rates[key] or 0, states[i] + tonumber(ARGV[at + 3]))
  elseif not taken[key] then
    taken[key] = true
    if kind == 's' then
      redis.call('ZADD', key, now + tonumber(ARGV[at + 3]), id)
      redis.call('PEXPIRE', key, ARGV[at + 3])
    elseif ARGV[at + 3] ~= '0' then
      redis.call('HSET', key, 'reserved', add(states[i], ARGV[at + 3]))
      if kind == 'p' then redis.call('HSETNX', key, 'charged', '0') end
      local lasts = string.match(ARGV[at + 6], '^~(%d+)$') -- of a session: seconds from the last request, at most a day
      if lasts then
        redis.call('HSETNX', key, 'began', sec)
        local left = tonumber(redis.call('HGET', key, 'began')) + 86400 - sec
        redis.call('EXPIRE', key, string.format('%d', math.max(1, math.min(tonumber(lasts), left))))
      else
        redis.call('EXPIREAT', key, ARGV[at + 6])
      end
    end
  end
end
for key, d in pairs(rates) do full(key, d) end
if ARGV[8] == '1' then
  redis.call('HSET', KEYS[2], id, ARGV[7])
else
  redis.call('SET', KEYS[3], 't', 'PX', 10000)
end
out[1] = 'ok'
return out
