-- Renew (or, with register, begin) a worker's lease and compare what Redis and the worker think it holds.
-- ARGV: worker ttl_ms register(0|1) grace_ms held-id...
-- Returns {alive, disowned ids, cancelled ids, expired ids}. alive 0: the lease is lost, drop everything.
-- A lease that has run out is lost only when the reaper has begun with it (0, then gone): after an outage of Redis that
-- was longer than a lease every worker goes on with what it holds.
-- disowned: claimed more than grace_ms ago, not held (a lost claim reply); they went back to the queue, or ended as asked.
go()
local wid, ttl, register, grace = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local t = now()
local lease = redis.call('ZSCORE', S .. 'wl', wid)
if register and not lease then
  redis.call('ZADD', S .. 'wl', t + ttl, wid)
  return {1, {}, {}, {}}
end
if not lease or tonumber(lease) == 0 then return {0, {}, {}, {}} end
redis.call('ZADD', S .. 'wl', t + ttl, wid)
local held, disowned, cancelled, expired = {}, {}, {}, {}
local known = 0
for i = 5, #ARGV do
  local id = ARGV[i]
  held[id] = true
  if redis.call('SISMEMBER', S .. 'wj:' .. wid, id) == 1 then
    known = known + 1
    local cancel = redis.call('HGET', S .. 'j:' .. id, 'cancel')
    if cancel == 'cancelled' then cancelled[#cancelled + 1] = id end
    if cancel == 'expired' then expired[#expired + 1] = id end
  end
end
if redis.call('SCARD', S .. 'wj:' .. wid) ~= known then
  for _, id in ipairs(redis.call('SMEMBERS', S .. 'wj:' .. wid)) do
    local j = S .. 'j:' .. id
    local h = redis.call('HMGET', j, 'state', 'wid', 'claimed', 'pool', 'crashes')
    if h[1] ~= 'running' or h[2] ~= wid then
      redis.call('SREM', S .. 'wj:' .. wid, id)
    elseif not held[id] and tonumber(h[3]) + grace < t then
      if not end_as_asked(id, j, t) then
        log('requeued', id, t, cjson.encode({why = 'disowned', crashes = tonumber(h[5])}))
        drop_entry(j)
        redis.call('SREM', S .. 'wj:' .. wid, id)
        enqueue(id, j, h[4], 'resume', '_', t)
      end
      disowned[#disowned + 1] = id
    end
  end
end
return {1, disowned, cancelled, expired}
