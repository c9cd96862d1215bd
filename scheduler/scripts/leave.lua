-- A job's client has left: the job is cancelled unless somebody asks for its frames again within linger_ms.
-- ARGV: id linger_ms
-- Returns the state, or unknown
local j = S .. 'j:' .. ARGV[1]
local h = redis.call('HMGET', j, 'state', 'ddl')
if not h[1] then return 'unknown' end
if not legal('cancelled', h[1]) then return h[1] end
go()
local left = now() + tonumber(ARGV[2])
redis.call('HSET', j, 'left', int(left))
redis.call('ZADD', S .. 'ddl', math.min(left, tonumber(h[2] or left)), ARGV[1])
return h[1]
