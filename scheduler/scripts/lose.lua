-- End a job that the record knows and the queue does not: its memory has lost it, and nobody gave it back.
-- ARGV: id state(in the record) event_json
-- Returns 1, or 0: the queue has it, it has ended, or another scheduler was faster
local id, state, data = ARGV[1], ARGV[2], ARGV[3]
if not legal('lost', state) or redis.call('EXISTS', S .. 'j:' .. id) == 1 then return 0 end
go()
if not redis.call('SET', S .. 'lost:' .. id, '1', 'NX', 'PX', JOB_TTL_MS) then return 0 end
log('lost', id, now(), data)
return 1
