-- Tell the end of a job that the queue has lost with its memory: nobody gave it back, or its client has its answer already.
-- ARGV: id state(in the record; '' = not there) submitted_json(where it is not there) event event_json
-- Returns 1, or 0: the queue has it, it has ended, or somebody else was faster
local id, state, submitted, event, data = unpack(ARGV)
if state ~= '' and not legal('lost', state) or redis.call('EXISTS', S .. 'j:' .. id) == 1 then return 0 end
go()
if not redis.call('SET', S .. 'lost:' .. id, '1', 'NX', 'PX', JOB_TTL_MS) then return 0 end
local t = now()
if state == '' then log('submitted', id, t, submitted) end
log(event, id, t, data)
return 1
