-- Charge a job to its key's limits, whole or not at all. Idempotent by job id until it is settled.
-- ARGV: id keep_ms concurrent(limit; 0: none), then per kind (requests, input, output, day): limit (0: none), amount
-- Returns {kind that refuses ('': none), ms to wait, used requests, used input, used output (rounded up), jobs}
local id, keep_ms, concurrent = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local t = now()
for _, old in ipairs(redis.call('ZRANGEBYSCORE', JOBS, '-inf', t, 'LIMIT', 0, 100)) do
  redis.call('ZREM', JOBS, old)
  redis.call('HDEL', LEVEL, 'j:' .. old)
end
local used, jobs = levels(t), redis.call('ZCARD', JOBS)
local kind, wait = '', 0
if redis.call('HEXISTS', LEVEL, 'j:' .. id) == 0 then
  if concurrent > 0 and jobs >= concurrent then
    kind, wait = 'concurrent', tonumber(redis.call('HGET', LEVEL, 'held') or '0') / concurrent
  end
  for i, name in ipairs(KINDS) do
    local limit, amount = tonumber(ARGV[2 + 2 * i]), tonumber(ARGV[3 + 2 * i])
    if limit > 0 and used[i] + amount > limit then
      local ms = (used[i] + amount - limit) / limit * PERIOD_MS[i]
      if kind == '' or ms > wait then kind, wait = name, ms end
    end
  end
  if kind == '' then
    jobs = jobs + 1
    for i, name in ipairs(KINDS) do
      used[i] = used[i] + (tonumber(ARGV[2 + 2 * i]) > 0 and tonumber(ARGV[3 + 2 * i]) or 0)
      redis.call('HSET', LEVEL, 'limit:' .. name, ARGV[2 + 2 * i])
    end
    keep(used, t)
    redis.call('HSET', LEVEL, 'j:' .. id, string.format('%.0f %s %s', t, ARGV[7], ARGV[9]))
    redis.call('ZADD', JOBS, t + keep_ms, id)
    local flows_ms = tonumber(ARGV[10]) > 0 and DAY_MS or 3600000
    local ttl = math.max(keep_ms + flows_ms, redis.call('PTTL', LEVEL))
    redis.call('PEXPIRE', LEVEL, string.format('%.0f', ttl))
    redis.call('PEXPIRE', JOBS, string.format('%.0f', ttl))
  end
end
return {kind, math.ceil(wait), math.ceil(used[1]), math.ceil(used[2]), math.ceil(used[3]), jobs}
