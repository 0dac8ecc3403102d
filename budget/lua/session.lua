-- When a session began, for all sidecars. KEYS[3] is the session. ARGV[5]: when it began here,
-- in microseconds, or '' to look only. ARGV[6]: how long it lasts from now on without a request,
-- in seconds, and ARGV[7]: from its beginning. It returns when the session began, or ''.
local began = redis.call('GET', KEYS[3]) or ''
if ARGV[5] ~= '' then
  if began == '' or tonumber(began) > tonumber(ARGV[5]) then began = ARGV[5] end
  local left = math.floor(tonumber(began) / 1000000) + tonumber(ARGV[7]) - sec
  if left > 0 then redis.call('SET', KEYS[3], began, 'EX', string.format('%d', math.min(left, tonumber(ARGV[6])))) end
end
return {state, clock[1], clock[2], began}
