-- What waits for models that may have no worker. Jobs that are due are queued first: nobody else may come to do it.
-- ARGV: pools
-- Returns for each {waiting jobs, ms since the oldest of them was queued (-1: none)}
go()
local t = now()
queue_due(t)
local out = {}
for i, pool in ipairs(ARGV) do
  local jobs, oldest = 0, nil
  for _, lane in ipairs({'resume', 'solo', unpack(LANES)}) do
    local wait = S .. 'wait:' .. pool .. ':' .. lane
    local head = redis.call('ZRANGE', wait, 0, 0, 'WITHSCORES')
    if head[1] then
      jobs = jobs + redis.call('ZCARD', wait)
      oldest = math.min(oldest or t, tonumber(head[2]))
    end
  end
  out[i] = {jobs, oldest and math.max(0, t - oldest) or -1}
end
return out
