-- Give a worker jobs for `rows` sequences (the last one may need more): resumed ones first, then (for an idle worker)
-- one suspect alone, then by lane (an overdue one has a right to its share) and, inside the lane, the tenant with the
-- least service so far (virtual token counter, Sheng et al., https://arxiv.org/abs/2401.00588). A suspect that has
-- waited for AGE_MS goes first, and a worker makes room for it. The last `reserved` rows are for the high lane only. A
-- job that is promised to workers which hold its beginning is left to them, and who comes next in its lane is served.
-- What this worker reads is noted as held: the newest `hot` beginnings (0: it keeps none).
-- Idempotent by nonce.
-- ARGV: worker pool rows nonce idle(0|1) reserved hot
-- Returns a list of {id, token, generation, last sequence, body, solo(0|1), submitted ms,
-- claimed ms, attempt, lane asked for}; nil without a live lease.
local wid, pool, rows, nonce, idle = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5] == '1'
local reserved = math.min(rows, tonumber(ARGV[6]))
local hot, promises = tonumber(ARGV[7]), S .. 'promise:' .. pool
local t = now()
local lease = redis.call('ZSCORE', S .. 'wl', wid)
if not lease or tonumber(lease) < t then return false end
go()
local out, taken, overdue = {}, {}, {}

local function answer(id, solo)
  local j = S .. 'j:' .. id
  local h = redis.call('HMGET', j, 'tok', 'gen', 'enq', 'attempt', 'claimed', 'lane')
  out[#out + 1] = {id, h[1], h[2], last_sequence(id), redis.call('GET', S .. 'b:' .. id) or '', solo, h[3], h[5], h[4], h[6]}
  taken[#taken + 1] = id
end

local previous = redis.call('GET', S .. 'cl:' .. wid)
if previous then
  local old, ids = string.match(previous, '^(%S+) (.*)$')
  if old == nonce then
    for id in string.gmatch(ids, '%S+') do
      local h = redis.call('HMGET', S .. 'j:' .. id, 'wid', 'at_lane', 'state')
      if h[1] == wid and h[3] == 'running' then answer(id, h[2] == 'solo' and 1 or 0) end
    end
    return out
  end
end

queue_due(t)
redis.call('ZREMRANGEBYSCORE', promises, '-inf', t)
local promised, kept, held = redis.call('ZCARD', promises) > 0, false, {}

-- Of a job that was taken: its beginnings are held here from now on. Returns whether it was promised to such a worker.
local function note_marks(id, j)
  local h = redis.call('HMGET', j, 'marks', 'warm')
  if not h[1] then return false end
  local warm = h[2] and redis.call('ZSCORE', S .. 'hot:' .. wid, h[2]) and true or false
  if hot > 0 then
    for mark in string.gmatch(h[1], '%S+') do redis.call('ZADD', S .. 'hot:' .. wid, t, mark) end
    redis.call('ZREMRANGEBYRANK', S .. 'hot:' .. wid, 0, -hot - 1)
    redis.call('PEXPIRE', S .. 'hot:' .. wid, LOG_TTL_MS)
  end
  if redis.call('ZREM', promises, id) == 1 then kept = true end
  return warm
end

-- Is the next job of a backlog for others, because they hold its beginning and this worker does not?
local function is_for_others(q)
  local groups = promised and redis.pcall('XINFO', 'GROUPS', q)
  if not groups or groups.err or not groups[1] then return false end
  local last = '0'
  for i = 1, #groups[1], 2 do
    if groups[1][i] == 'last-delivered-id' then last = groups[1][i + 1] end
  end
  local entry = redis.call('XRANGE', q, '(' .. last, '+', 'COUNT', 1)[1]
  local id = entry and entry[2][2]
  if not id or not redis.call('ZSCORE', promises, id) then return false end
  return not redis.call('ZSCORE', S .. 'hot:' .. wid, redis.call('HGET', S .. 'j:' .. id, 'warm') or '')
end

-- Returns nil (nothing there), false (a tombstone was dropped) or the job's cost and what its tenant owes for the prompt.
local function take(lane, tenant)
  local q = S .. 'q:' .. pool .. ':' .. lane .. ':' .. tenant
  redis.pcall('XGROUP', 'CREATE', q, 'w', '0', 'MKSTREAM')
  local r = redis.call('XREADGROUP', 'GROUP', 'w', wid, 'COUNT', 1, 'STREAMS', q, '>')
  if not r or not r[1] or not r[1][2][1] then
    if redis.call('XLEN', q) == 0 then redis.call('DEL', q) end
    return nil
  end
  local eid, f = r[1][2][1][1], r[1][2][1][2]
  local id = f and f[2]
  local j = S .. 'j:' .. (id or '')
  local h = id and redis.call('HMGET', j, 'state', 'eid', 'cost', 'rows', 'prompt', 'tenant') or {}
  if not legal('claimed', h[1]) or h[2] ~= eid then
    drop(q, eid)
    return false
  end
  local fence = redis.call('INCR', S .. 'fence')
  local attempt = redis.call('HINCRBY', j, 'attempt', 1)
  -- A generation of its own for every claim, also where a power loss has rolled the counters back: who has read frames
  -- that were lost can tell them from those that are written in their place.
  local last = redis.call('XREVRANGE', S .. 't:' .. id, '+', '-', 'COUNT', 1)
  local gen = last[1] and math.max(t, tonumber(string.match(last[1][1], '^(%d+)'))) or t
  -- compared for equality; the nonce keeps tokens apart even if a failover rolls the counter back
  local token = int(fence) .. ':' .. wid .. ':' .. nonce
  leave_lane(id, j)
  redis.call('HSET', j, 'state', 'running', 'tok', token, 'fence', fence, 'wid', wid, 'claimed', int(t),
    'gen', int(gen))
  redis.call('SADD', S .. 'wj:' .. wid, id)
  local facts = {worker = wid, fence = fence, attempt = attempt, generation = gen}
  if note_marks(id, j) then facts['warm'] = true end
  log('claimed', id, t, cjson.encode(facts))
  answer(id, lane == 'solo' and 1 or 0)
  rows = rows - tonumber(h[4])
  return tonumber(h[3]), attempt == 1 and tonumber(h[5]) / weight(h[6]) or 0
end

local function depth(lane) return redis.call('ZCARD', S .. 'wait:' .. pool .. ':' .. lane) end

-- The lane's index promises a job that no backlog has: put its oldest one back where it belongs.
local function repair(lane)
  local wait = S .. 'wait:' .. pool .. ':' .. lane
  local head = redis.call('ZRANGE', wait, 0, 0, 'WITHSCORES')
  if not head[1] then return end
  local j = S .. 'j:' .. head[1]
  local h = redis.call('HMGET', j, 'state', 'tenant')
  leave_lane(head[1], j)
  redis.call('ZREM', wait, head[1])
  if h[1] ~= 'queued' then return end
  enqueue(head[1], j, pool, lane, (lane == 'resume' or lane == 'solo') and '_' or h[2], tonumber(head[2]))
end

-- The lane to serve and whether by right: the highest one where a job waits, but for overdue lanes. A lane is overdue
-- while its oldest job has waited longer than AGE_MS for each lane above; then it is served at once, and again each time
-- the others have had their part of the tokens: vt O:<pool>:<lane> counts from minus that part up to 0.
local function best_lane()
  local first, right, longest
  for i, lane in ipairs(LANES) do
    local head = redis.call('ZRANGE', S .. 'wait:' .. pool .. ':' .. lane, 0, 0, 'WITHSCORES')
    local late = head[1] and t - tonumber(head[2]) - (i - 1) * AGE_MS or 0
    overdue[lane] = i > 1 and late > 0
    if head[1] and not first and not held[lane] then
      first = lane
    elseif overdue[lane] and not held[lane] and (not longest or late > longest) then
      if tonumber(redis.call('HGET', S .. 'vt', 'O:' .. pool .. ':' .. lane) or '0') >= 0 then right, longest = lane, late end
    end
  end
  return right or first, right ~= nil
end

local function count_turn(lane, by_right, cost)
  for i = 2, #LANES do
    local other, key = LANES[i], 'O:' .. pool .. ':' .. LANES[i]
    if not overdue[other] then
      redis.call('HDEL', S .. 'vt', key)
    elseif other ~= lane then
      redis.call('HINCRBYFLOAT', S .. 'vt', key, cost)
    elseif by_right then
      redis.call('HSET', S .. 'vt', key, -cost * (1 / AGED_SHARE - 1))
    end
  end
end

local function take_fair(lane, by_right)
  local act, key = S .. 'act:' .. pool .. ':' .. lane, pool .. ':' .. lane
  local heads, at = redis.call('ZRANGE', act, 0, promised and 15 or 0, 'WITHSCORES'), 1
  if not heads[1] then return repair(lane) end
  while heads[at] and is_for_others(S .. 'q:' .. key .. ':' .. heads[at]) do at = at + 2 end
  if not heads[at] then
    held[lane] = true
    return
  end
  local tenant, v = heads[at], tonumber(heads[at + 1])
  local cost, owed = take(lane, tenant)
  if cost == nil then
    redis.call('ZREM', act, tenant)
    redis.call('HSET', S .. 'vt', 'F:' .. key .. ':' .. tenant, v)
  elseif cost then
    redis.call('HSET', S .. 'vt', 'V:' .. key, v)
    redis.call('ZINCRBY', act, owed, tenant)
    count_turn(lane, by_right, cost)
  end
end

-- A suspect has waited for AGE_MS: no worker of this pool becomes empty by itself.
local function suspect_is_overdue()
  local head = redis.call('ZRANGE', S .. 'wait:' .. pool .. ':solo', 0, 0, 'WITHSCORES')
  return head[1] ~= nil and t - tonumber(head[2]) > AGE_MS
end

-- One worker takes nothing more until it is empty, for as long as it comes here now and then.
local function makes_room()
  local key = S .. 'room:' .. pool
  local chosen = redis.call('GET', key)
  if chosen and chosen ~= wid then return false end
  redis.call('SET', key, wid, 'PX', 5000)
  return true
end

local overdue_suspect = suspect_is_overdue()
if overdue_suspect and not idle and makes_room() then
  for _, room in ipairs({'any', 'high'}) do redis.call('ZREM', S .. 'idle:' .. room .. ':' .. pool, wid) end
  return out
end

local guard, alone = rows * 4 + 64, false
rows = rows - reserved
while rows > 0 and guard > 0 do
  guard = guard - 1
  if idle and #out == 0 and depth('solo') > 0 and (overdue_suspect or depth('resume') == 0) then
    local cost = take('solo', '_')
    if cost then
      redis.call('DEL', S .. 'room:' .. pool)
      alone = true
      break
    end
    if cost == nil then repair('solo') end
  elseif depth('resume') > 0 then
    if take('resume', '_') == nil then repair('resume') end
  else
    local lane, by_right = best_lane()
    if not lane then break end
    take_fair(lane, by_right)
  end
end
rows = rows + reserved
while rows > 0 and guard > 0 and not alone and not held['high'] and depth('high') > 0 do
  guard = guard - 1
  take_fair('high', false)
end
if kept then -- who left these jobs to this worker may have something to do behind them
  for _, lane in ipairs(LANES) do
    if depth(lane) > 0 then
      wake(pool, lane, t)
      break
    end
  end
end
for room, left in pairs({any = rows - reserved, high = rows}) do
  local idle = S .. 'idle:' .. room .. ':' .. pool
  if left > 0 and not alone then redis.call('ZADD', idle, -left, wid) else redis.call('ZREM', idle, wid) end
end
if #taken > 0 then redis.call('SET', S .. 'cl:' .. wid, nonce .. ' ' .. table.concat(taken, ' '), 'PX', 60000) end
return out
