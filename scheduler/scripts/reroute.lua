-- A worker gives up on a job that another model is to take over: at once, at the front of that model's queue. A job that
-- was asked to stop meanwhile ends instead. What is in its log stays; its cost stays what it was accepted with.
-- ARGV: id token pool body prompt_tokens event_json
-- Returns ok | ended | fenced
local id, token, pool, body, prompt, data = unpack(ARGV, 1, 6)
local j = S .. 'j:' .. id
local h = redis.call('HMGET', j, 'tok', 'state', 'wid')
if token == '' or h[1] ~= token or not legal('requeued', h[2]) then return 'fenced' end
go()
local t = now()
if end_as_asked(id, j, t) then return 'ended' end
log('requeued', id, t, data)
drop_entry(j)
redis.call('SREM', S .. 'wj:' .. h[3], id)
redis.call('HSET', j, 'pool', pool, 'prompt', prompt, 'retries', 0, 'crashes', 0)
redis.call('HDEL', j, 'marks', 'warm') -- of another model's tokens
redis.call('SET', S .. 'b:' .. id, body)
enqueue(id, j, pool, 'resume', '_', t)
return 'ok'
