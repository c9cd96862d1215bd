-- A worker gives up on a job that another model is to take over, or a job that has said nothing waits for a model which
-- nobody will serve: at once, at the front of the other model's queue. A job that was asked to stop meanwhile ends
-- instead. What is in its log stays; its cost stays what it was accepted with.
-- ARGV: id token('': it waits) pool body prompt_tokens event_json pool_of_before(where it waits)
-- Returns ok | ended | fenced
local id, token, pool, body, prompt, data, before = unpack(ARGV, 1, 7)
local j = S .. 'j:' .. id
local h = redis.call('HMGET', j, 'tok', 'state', 'wid', 'pool')
local waits = token == '' and h[2] == 'queued' and h[4] == before and last_sequence(id) == 0
if not (waits or token ~= '' and h[1] == token) or not legal('requeued', h[2]) then return 'fenced' end
go()
local t = now()
if end_as_asked(id, j, t) then return 'ended' end
log('requeued', id, t, data)
leave_lane(id, j)
drop_entry(j)
redis.call('SREM', S .. 'wj:' .. h[3], id)
redis.call('HSET', j, 'pool', pool, 'prompt', prompt, 'retries', 0, 'crashes', 0)
redis.call('HDEL', j, 'marks', 'warm') -- of another model's tokens
redis.call('SET', S .. 'b:' .. id, body)
enqueue(id, j, pool, 'resume', '_', t)
return 'ok'
