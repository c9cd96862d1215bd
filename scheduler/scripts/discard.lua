-- An operator needs a dead job no longer: it leaves the list, and what is kept of it goes after the usual times.
-- ARGV: id
-- Returns ok | not_dead (or discarded before)
local j = S .. 'j:' .. ARGV[1]
if redis.call('ZREM', S .. 'dlq', ARGV[1]) == 0 then return 'not_dead' end
let_expire(ARGV[1], j)
return 'ok'
