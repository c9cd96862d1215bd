-- A worker ends its job. Idempotent: the same token finishing twice is fine.
-- ARGV: id token event(finished|failed|cancelled|expired) state event_json terminal_frame last_sequence
-- Returns ok | fenced | gap (the log ends before last_sequence: Redis lost frames, send them again first)
local id, token, event, state, data, frame = unpack(ARGV, 1, 6)
local j = S .. 'j:' .. id
local h = redis.call('HMGET', j, 'tok', 'state', 'fin')
if token ~= '' and h[3] == token then return 'ok' end
if token == '' or h[1] ~= token or not legal(event, h[2]) then return 'fenced' end
if last_sequence(id) < tonumber(ARGV[7]) then return 'gap' end
go()
redis.call('HSET', j, 'fin', token)
finish(event, state, id, j, now(), data, frame)
return 'ok'
