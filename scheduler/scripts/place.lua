-- Where a waiting job stands in its pool, from 1: behind resumed jobs, the higher lanes, and what its own lane serves
-- before it (by age, but no more than its tenant's own backlog for each tenant there). Writes nothing.
-- ARGV: id
-- Returns {place, ms until its turn at the measured drain (-1: not known), pool}, or nil where it does not wait
local j = S .. 'j:' .. ARGV[1]
local h = redis.call('HMGET', j, 'state', 'pool', 'at_lane', 'q')
if h[1] ~= 'queued' then return false end
local wait, lane = S .. 'wait:' .. h[2] .. ':', h[3]
local rank = redis.call('ZRANK', wait .. lane, ARGV[1])
if not rank then return false end
if lane ~= 'resume' and lane ~= 'solo' then
  rank = math.min(rank, redis.call('XLEN', h[4]) * math.max(1, redis.call('ZCARD', S .. 'act:' .. h[2] .. ':' .. lane)) - 1)
end
if lane ~= 'resume' then rank = rank + redis.call('ZCARD', wait .. 'resume') end
for _, higher in ipairs(LANES) do
  if higher == lane or lane == 'resume' or lane == 'solo' then break end
  rank = rank + redis.call('ZCARD', wait .. higher)
end
local ms, _, tokens = drained(h[2], now())
local waiting = redis.call('HMGET', S .. 'cnt', 'p:' .. h[2], 'P:' .. h[2])
if tokens <= 0 then return {rank + 1, -1, h[2]} end
return {rank + 1, math.ceil((rank + 1) / tonumber(waiting[1]) * tonumber(waiting[2]) / tokens * ms), h[2]}
