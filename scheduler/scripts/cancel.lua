-- Cancel a job wherever it is: waiting ones end here, a running one is told with its worker's next emit or heartbeat.
-- ARGV: id by
-- Returns the state before: unknown | queued | delayed | running | a terminal state (nothing happens)
go()
local id, by = ARGV[1], ARGV[2]
local j = S .. 'j:' .. id
local state = redis.call('HGET', j, 'state')
if not state then return 'unknown' end
if state == 'running' then
  redis.call('HSET', j, 'cancel', 'cancelled', 'cancel_by', by)
elseif legal('cancelled', state) then
  finish_here('cancelled', 'cancelled', id, j, now(), {by = by})
end
return state
