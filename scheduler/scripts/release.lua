-- A worker hands a job back without a crash mark: at once to the front (delay 0), or due later. A job that was asked to
-- stop meanwhile ends instead.
-- ARGV: id token why delay_ms
-- Returns ok | fenced
local id, token, why, delay = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local j = S .. 'j:' .. id
local h = redis.call('HMGET', j, 'tok', 'state', 'wid', 'crashes', 'pool')
if h[1] ~= token or token == '' then return 'fenced' end
go()
local t = now()
local event = delay > 0 and 'delayed' or 'requeued'
if not legal(event, h[2]) then return 'fenced' end
if end_as_asked(id, j, t) then return 'ok' end
log(event, id, t, cjson.encode({why = why, crashes = tonumber(h[4])}))
drop_entry(j)
redis.call('SREM', S .. 'wj:' .. h[3], id)
if delay > 0 then
  redis.call('HSET', j, 'state', 'delayed', 'tok', '', 'wid', '', 'eid', '')
  redis.call('ZADD', S .. 'due', t + delay, id)
else
  enqueue(id, j, h[5], 'resume', '_', t)
end
return 'ok'
