-- An operator needs a dead job no longer: it leaves the list, and what is kept of it goes after the usual times.
-- ARGV: id
-- Returns ok | not_dead (or discarded before)
local j = S .. 'j:' .. ARGV[1]
if redis.call('ZREM', S .. 'dlq', ARGV[1]) == 0 then return 'not_dead' end
redis.call('PEXPIRE', S .. 't:' .. ARGV[1], LOG_TTL_MS)
redis.call('PEXPIRE', S .. 'b:' .. ARGV[1], LOG_TTL_MS)
redis.call('PEXPIRE', S .. 'i:' .. ARGV[1], LOG_TTL_MS)
redis.call('PEXPIRE', j, JOB_TTL_MS)
return 'ok'
