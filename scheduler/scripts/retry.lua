-- A worker gives up on a job for a reason that may pass: due again later, or dead once it has had its retries. The wait
-- is drawn evenly from nothing up to a ceiling that doubles with each retry ("full jitter",
-- https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
-- `least_ms` comes on top: before that it would fail again.
-- ARGV: id token draw[0,1) why error_code error terminal_event_json terminal_frame least_ms
-- Returns fenced, dead, ended (as was asked meanwhile), or the wait in ms
local id, token, draw, why, code, message, data, frame = unpack(ARGV, 1, 8)
local j = S .. 'j:' .. id
local h = redis.call('HMGET', j, 'tok', 'state', 'wid', 'crashes', 'retries')
if token == '' or h[1] ~= token or not legal('delayed', h[2]) then return 'fenced' end
go()
local t, retries = now(), tonumber(h[5] or '0')
if end_as_asked(id, j, t) then return 'ended' end
if retries >= MAX_RETRIES then
  redis.call('HSET', j, 'fin', token)
  finish('died', 'dead', id, j, t, data, frame)
  return 'dead'
end
local wait = tonumber(ARGV[9]) + math.floor(tonumber(draw) * math.min(RETRY_LONGEST_MS, RETRY_BASE_MS * 2 ^ retries))
log('delayed', id, t, cjson.encode({why = why, crashes = tonumber(h[4]), retries = retries + 1, wait_ms = wait,
  error_code = code, error = message}))
drop_entry(j)
redis.call('SREM', S .. 'wj:' .. h[3], id)
redis.call('HSET', j, 'retries', retries + 1)
delay(id, j, t + wait)
return int(wait)
