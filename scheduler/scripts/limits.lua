-- Shared by the scripts of rate limits: what a key has used of its limits. Every key has a hash slot of its own.
--   KEYS[1]  {limit.<budget>}:level  HASH  used:<kind>, limit:<kind> per period, at (ms), held (mean ms of a job),
--                                          j:<job id> "<began ms> <input> <output>" of jobs that are not settled
--   KEYS[2]  {limit.<budget>}:jobs   ZSET  job id -> ms at which it counts as ended, come what may
-- A limit is a token bucket that holds one period's worth (a minute's, a day's): what was used flows off evenly.
-- https://en.wikipedia.org/wiki/Token_bucket
local LEVEL, JOBS = KEYS[1], KEYS[2]
local KINDS = {'requests', 'input', 'output', 'day'}
local DAY_MS = 86400000
local PERIOD_MS = {60000, 60000, 60000, DAY_MS}

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- `what` of each kind, 0 where there is none.
local function of_each(what)
  local names = {}
  for i, kind in ipairs(KINDS) do names[i] = what .. ':' .. kind end
  local values = redis.call('HMGET', LEVEL, unpack(names))
  for i in ipairs(KINDS) do values[i] = tonumber(values[i] or '0') end
  return values
end

-- What is used of each kind at t.
local function levels(t)
  local passed = math.max(0, t - tonumber(redis.call('HGET', LEVEL, 'at') or t))
  local used, limit = of_each('used'), of_each('limit')
  for i in ipairs(KINDS) do used[i] = math.max(0, used[i] - passed * limit[i] / PERIOD_MS[i]) end
  return used
end

local function keep(used, t)
  local values = {'at', string.format('%.0f', t)}
  for i, kind in ipairs(KINDS) do
    values[#values + 1] = 'used:' .. kind
    values[#values + 1] = used[i]
  end
  redis.call('HSET', LEVEL, unpack(values))
end
