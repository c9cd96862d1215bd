-- Put the jobs of workers whose lease has ended back to the front: first crash resumes, second runs alone, third is
-- dead. Bounded work per call.
-- ARGV: max_crashes limit worker('' = all whose lease has ended; a name = this one, now)
-- Returns the ids touched
go()
local max_crashes, limit, only = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local t = now()
local gone = only ~= '' and {only} or redis.call('ZRANGEBYSCORE', S .. 'wl', '-inf', t, 'LIMIT', 0, 4)
if only ~= '' then redis.call('ZADD', S .. 'wl', 0, only) end
local touched, pools = {}, {}

local function crash(id, j, h, wid)
  local crashes = tonumber(h[3]) + 1
  redis.call('HSET', j, 'crashes', crashes)
  if h[4] == 'cancelled' then
    finish_here('cancelled', 'cancelled', id, j, t, {by = 'reaper'})
  elseif h[4] == 'expired' then
    finish_here('expired', 'expired', id, j, t, {error_code = 'deadline_exceeded', error = 'The deadline passed.'})
  elseif crashes >= max_crashes then
    finish_here('died', 'dead', id, j, t, {worker = wid, error_code = 'worker_lost',
      error = 'Workers died ' .. int(crashes) .. ' times while running this job.'})
  else
    log('requeued', id, t, cjson.encode({why = 'worker_lost', worker = wid, crashes = crashes}))
    drop_entry(j)
    enqueue(id, j, h[5], crashes == max_crashes - 1 and 'solo' or 'resume', '_', t)
    pools[h[5]] = true
  end
end

for _, wid in ipairs(gone) do
  local held = S .. 'wj:' .. wid
  for _, id in ipairs(redis.call('SRANDMEMBER', held, limit)) do
    local j = S .. 'j:' .. id
    local h = redis.call('HMGET', j, 'state', 'wid', 'crashes', 'cancel', 'pool')
    if h[1] == 'running' and h[2] == wid then crash(id, j, h, wid) end
    redis.call('SREM', held, id)
    touched[#touched + 1] = id
  end
  if redis.call('SCARD', held) == 0 then redis.call('ZREM', S .. 'wl', wid) end
end
for pool in pairs(pools) do redis.call('PUBLISH', S .. 'wake:' .. pool, '1') end
return touched
