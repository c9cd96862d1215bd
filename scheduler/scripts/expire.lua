-- End what has passed its deadline, and what its client has left for too long: waiting jobs here, running ones through
-- their worker. Bounded work per call.
-- ARGV: limit
-- Returns the number of jobs touched
go()
local t = now()
local ids = redis.call('ZRANGEBYSCORE', S .. 'ddl', '-inf', t, 'LIMIT', 0, tonumber(ARGV[1]))
for _, id in ipairs(ids) do
  local j = S .. 'j:' .. id
  local h = redis.call('HMGET', j, 'state', 'cancel', 'left')
  local state = h[1]
  redis.call('ZREM', S .. 'ddl', id)
  local gone = h[3] and tonumber(h[3]) <= t
  if state == 'running' then
    if h[2] == '' then redis.call('HSET', j, 'cancel', gone and 'cancelled' or 'expired', 'cancel_by', 'disconnect') end
  elseif gone and legal('cancelled', state) then
    finish_here('cancelled', 'cancelled', id, j, t, {by = 'disconnect'})
  elseif legal('expired', state) then
    finish_here('expired', 'expired', id, j, t, {error_code = 'deadline_exceeded', error = 'The deadline passed while the job was waiting.'})
  end
end
return #ids
