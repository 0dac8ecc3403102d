-- Compares counts with the sums of the audit log, and corrects them. KEYS[3..] are the counts.
-- ARGV[5]: the audit log has all records of this sidecar up to then, in microseconds.
-- ARGV[6..], for each count: what the log has as charged ('' if it was not asked) and as
-- reserved, the fields in and out when this sidecar last compared the count, and that time.
-- It returns for each: charged before, reserved, in, out, what was added, what was taken away,
-- and whether the sums of the log were complete.
if state ~= 'ok' then return {state, clock[1], clock[2]} end
redis.call('HSET', KEYS[1], 'w:' .. me, ARGV[5])
local all, shipped, known = redis.call('HGETALL', KEYS[1]), nil, {}
for i = 1, #all, 2 do known[all[i]] = all[i + 1] end
for name in pairs(known) do -- also a silent one, until it is buried
  if string.sub(name, 1, 2) == 'b:' then
    local w = tonumber(known['w:' .. string.sub(name, 3)] or '0')
    shipped = math.min(shipped or w, w)
  end
end
local out = {'ok', clock[1], clock[2]}
for i = 1, #KEYS - 2 do
  local key, at = KEYS[2 + i], 1 + 5 * i
  local c = redis.call('HMGET', key, 'gen', 'known', 'charged', 'reserved', 'in', 'out')
  local charged, reserved, came, went = c[3] or '0', c[4] or '0', c[5] or '0', c[6] or '0'
  local log, held, since = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 4])
  local up, down, complete = '0', '0', '0'
  if c[1] == gen and c[2] == '1' and log ~= '' then
    local want = charged
    if above(log, '0', '0', want) then want = log end
    -- What was counted before since is in the sums, if all sidecars have shipped it.
    if since > 0 and (shipped or 0) >= since then
      complete = '1'
      local low = sub(add(log, held), add(reserved, sub(went, ARGV[at + 3])))
      if above(low, '0', '0', want) then want = low end
      local most = add(add(log, held), sub(came, ARGV[at + 2]))
      if above(want, '0', '0', most) then want = most end
    end
    up, down = sub(want, charged), sub(charged, want)
    if want ~= charged then redis.call('HSET', key, 'charged', want) end
  end
  for _, text in ipairs({charged, reserved, came, went, up, down, complete}) do table.insert(out, text) end
end
return out
