-- Put the jobs of workers whose lease has ended back to the front: first crash resumes, second runs alone, third is
-- dead. Bounded work per call.
-- ARGV: max_crashes limit worker('' = all whose lease has ended; a name = this one, now) ended_ms(ago, or before)
-- Returns the ids touched
go()
local max_crashes, limit, only = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local t = now()
local gone = only ~= '' and {only} or redis.call('ZRANGEBYSCORE', S .. 'wl', '-inf', int(t - tonumber(ARGV[4])), 'LIMIT', 0, 4)
for _, wid in ipairs(gone) do redis.call('ZADD', S .. 'wl', 0, wid) end -- begun: this lease cannot be renewed any more
local touched = {}
local seen_by = only ~= '' and 'agent' or 'lease'

local function crash(id, j, h, wid)
  local crashes = tonumber(h[3]) + 1
  redis.call('HSET', j, 'crashes', crashes)
  if end_as_asked(id, j, t) then return end
  if crashes >= max_crashes then
    finish_here('died', 'dead', id, j, t, {worker = wid, error_code = 'worker_lost',
      error = 'Workers died ' .. int(crashes) .. ' times while running this job.'})
  else
    log('requeued', id, t, cjson.encode({why = 'worker_lost', seen_by = seen_by, worker = wid, crashes = crashes}))
    drop_entry(j)
    enqueue(id, j, h[4], crashes == max_crashes - 1 and 'solo' or 'resume', '_', t)
  end
end

for _, wid in ipairs(gone) do
  local held = S .. 'wj:' .. wid
  for _, id in ipairs(redis.call('SRANDMEMBER', held, limit)) do
    local j = S .. 'j:' .. id
    local h = redis.call('HMGET', j, 'state', 'wid', 'crashes', 'pool')
    if h[1] == 'running' and h[2] == wid then crash(id, j, h, wid) end
    redis.call('SREM', held, id)
    touched[#touched + 1] = id
  end
  if redis.call('SCARD', held) == 0 then redis.call('ZREM', S .. 'wl', wid) end
end
return touched
