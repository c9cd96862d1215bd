-- Shared by the scripts of rate limits: what a key has used of its limits. Every key has a hash slot of its own.
--   KEYS[1]  {limit.<budget>}:level  HASH  used:<kind>, limit:<kind> per minute, at (ms), held (mean ms of a job),
--                                          j:<job id> "<began ms> <input> <output>" of jobs that are not settled
--   KEYS[2]  {limit.<budget>}:jobs   ZSET  job id -> ms at which it counts as ended, come what may
-- A limit is a token bucket that holds one minute's worth: what was used flows off evenly.
-- https://en.wikipedia.org/wiki/Token_bucket
local LEVEL, JOBS = KEYS[1], KEYS[2]
local KINDS = {'requests', 'input', 'output'}

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- What is used of each kind at t.
local function levels(t)
  local r = redis.call('HMGET', LEVEL, 'at', 'used:requests', 'used:input', 'used:output',
    'limit:requests', 'limit:input', 'limit:output')
  local passed, used = math.max(0, t - tonumber(r[1] or t)), {}
  for i in ipairs(KINDS) do
    used[i] = math.max(0, tonumber(r[1 + i] or '0') - passed * tonumber(r[4 + i] or '0') / 60000)
  end
  return used
end

local function keep(used, t)
  redis.call('HSET', LEVEL, 'at', string.format('%.0f', t),
    'used:requests', used[1], 'used:input', used[2], 'used:output', used[3])
end
