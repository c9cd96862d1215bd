-- Shared by every script of this folder: the key schema, the transition check and the moves between places.
-- Runs on Redis 6.2+ and Valkey; KEYS[1] is the shard's event log and routes the call on a cluster.
--
-- {farm.<k>}: is the prefix S of shard k; the braces put all its keys into one hash slot.
--   ev                         STREAM  event log, one entry per transition: t type, j job, at ms, d JSON
--   j:<id>                     HASH    state pool tenant lane cost rows enq ddl tok fence wid claimed attempt crashes
--                                      gen out cancel rt q eid durable fin prompt budget retries left
--                                      marks (names of the prompt's beginnings, longest first) warm (the one promised for)
--   b:<id>                     STRING  body (msgpack of JobRequest, without its images)
--   i:<id>                     STRING  digests of the images that it shows, in order, until the job is finished; as long as
--                                      the body where it ended in another way and may be run again
--   img:<tenant>:<digest>      STRING  an image of the tenant's jobs, once, while one of them needs it
--   uses:<tenant>:<digest>     ZSET    job id -> ms at which it lets go of the image (inf: as long as it may run)
--   t:<id>                     STREAM  token log, explicit ids <generation>-<sequence>, field d; a generation is the ms of
--                                      the claim that wrote it, sequences go on from one generation to the next
--   q:<pool>:<lane>:<tenant>   STREAM  backlog with group `w`, one entry per job (waiting, or pending with its worker): j id
--   wait:<pool>:<lane>         ZSET    id -> enqueued ms (depth, age of the head); lanes high normal low resume solo
--   act:<pool>:<lane>          ZSET    tenant -> tokens of service by weight (virtual token counter)
--   vt                         HASH    V:<pool>:<lane> lane clock, F:<pool>:<lane>:<tenant> where an idle tenant stopped,
--                                      O:<pool>:<lane> tokens until an overdue lane has its next turn by right
--   weights                    HASH    tenant -> weight that was set while the farm runs; goes before the settings' WEIGHTS
--   wl, wj:<wid>               ZSET, SET  worker -> lease end ms, jobs a worker holds
--   idle:any:<pool>, …:high:…  ZSET    workers that left a claim with room, for any lane or the high one: -rows left
--   hot:<wid>                  ZSET    names of prompts' beginnings that a worker has read -> when it did so last
--   promise:<pool>             ZSET    waiting jobs that workers holding their beginning are to have -> until ms
--   cl:<wid>                   STRING  nonce and ids of the last claim, so that a repeated claim gets the same answer
--   lost:<id>                  STRING  the end of a job that the queue had lost was told
--   room:<pool>                STRING  the worker that empties itself for a suspect that waits too long
--   due, ddl, dlq              ZSET    delayed jobs by due ms, deadlines by ms, dead letters by ms
--   used                       ZSET    "<job id> <input tokens> <output tokens> <budget>" -> ended ms, until it is settled
--   idem:<tenant>:<key>        STRING  "<job id> <body hash>"
--   cnt                        HASH    waiting: jobs, tokens, of a pool p:<pool>, P:<pool> (tokens); not ended:
--                                      t:<tenant>, T:<tenant> (tokens)
--   rate:<pool>                HASH    what ended while jobs waited: jobs, tokens, in ms (all fading), until at, waiting from
--   fence                      STRING  counter of claims
-- Channels: n:<node> frames for an API node, {shard}wake:<worker, without the number of its lease> a job is waiting.
--
-- OOM policy: a script whose first write may grow memory is refused whole under maxmemory (submit begins with XADD);
-- a script that begins with go() runs to its end, so that running work can always finish.
local EV = KEYS[1]
local S = string.sub(EV, 1, #EV - 2)
local LANES = {'high', 'normal', 'low'}
local CHARGE_TOKENS = 16 -- output is charged in such steps while it is produced, and the rest at the end

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function int(n) return string.format('%.0f', n) end

local function go() redis.call('ZREM', S .. 'wl', '-') end

local function log(kind, id, t, data)
  return redis.call('XADD', EV, '*', 't', kind, 'j', id, 'at', int(t), 'd', data)
end

-- How fast a pool drains: what ended, over the time in which jobs waited, both fading with that time (DRAIN_MS). A farm
-- with nothing to do says nothing about what it can do, so that such times do not count.
-- Returns the faded {ms, jobs, tokens} at t.
local function drained(pool, t)
  local r = redis.call('HMGET', S .. 'rate:' .. pool, 'ms', 'jobs', 'tokens', 'at', 'from')
  local passed = 0
  if tonumber(redis.call('HGET', S .. 'cnt', 'p:' .. pool) or '0') > 0 then
    passed = math.max(0, t - math.max(tonumber(r[4] or '0'), tonumber(r[5] or '0')))
  end
  local kept = math.exp(-passed / DRAIN_MS)
  return (tonumber(r[1] or '0')) * kept + DRAIN_MS * (1 - kept), tonumber(r[2] or '0') * kept, tonumber(r[3] or '0') * kept
end

-- Note what has ended just now; called while jobs wait, and once more when the last one leaves.
local function note_drain(pool, t, jobs, tokens)
  local ms, all_jobs, all_tokens = drained(pool, t)
  redis.call('HSET', S .. 'rate:' .. pool, 'ms', ms, 'jobs', all_jobs + jobs, 'tokens', all_tokens + tokens, 'at', int(t))
end

-- LEGAL comes from the transition table in scheduler/jobs.py: event -> set of states it may leave.
local function legal(event, state) return LEGAL[event][state or ''] == true end

-- Wake one worker that has room for a job of this lane, the one with the most: all the others would find nothing.
local function wake(pool, lane, t)
  for _, room in ipairs(lane == 'high' and {'any', 'high'} or {'any'}) do
    local idle = S .. 'idle:' .. room .. ':' .. pool
    local first = redis.call('ZPOPMIN', idle)
    while first[1] do
      local lease = redis.call('ZSCORE', S .. 'wl', first[1])
      if lease and tonumber(lease) >= t then
        redis.call('PUBLISH', S .. 'wake:' .. string.gsub(first[1], '%.%d+$', ''), '1')
        return
      end
      first = redis.call('ZPOPMIN', idle)
    end
  end
end

-- A waiting job goes to a worker with room that holds the beginning of its prompt: the one that holds most of it is woken,
-- and for PREFIX_GRACE_MS only workers that hold as much may take it. False: nobody does, or none of them has room.
local function promise(id, j, pool, lane, t)
  local marks = redis.call('HGET', j, 'marks')
  if PREFIX_GRACE_MS == 0 or not marks or lane == 'resume' or lane == 'solo' then return false end
  local names, best, longest = {}, nil, nil
  for mark in string.gmatch(marks, '%S+') do names[#names + 1] = mark end
  local idle = S .. 'idle:any:' .. pool
  for _, wid in ipairs(redis.call('ZRANGE', idle, 0, 15)) do
    for i, when in ipairs(redis.call('ZMSCORE', S .. 'hot:' .. wid, unpack(names))) do
      if when and (not longest or i < longest) then best, longest = wid, i end
    end
  end
  local lease = best and redis.call('ZSCORE', S .. 'wl', best)
  if not lease or tonumber(lease) < t then return false end
  if tonumber(redis.call('ZINCRBY', idle, 1, best)) >= 0 then redis.call('ZREM', idle, best) end
  redis.call('HSET', j, 'warm', names[longest])
  redis.call('ZADD', S .. 'promise:' .. pool, t + PREFIX_GRACE_MS, id)
  redis.call('PEXPIRE', S .. 'promise:' .. pool, PREFIX_GRACE_MS + 60000)
  redis.call('PUBLISH', S .. 'wake:' .. string.gsub(best, '%.%d+$', ''), '1')
  return true
end

local function enqueue(id, j, pool, lane, tenant, t)
  local q = S .. 'q:' .. pool .. ':' .. lane .. ':' .. tenant
  redis.pcall('XGROUP', 'CREATE', q, 'w', '0', 'MKSTREAM')
  local eid = redis.call('XADD', q, '*', 'j', id)
  redis.call('HSET', j, 'state', 'queued', 'q', q, 'eid', eid, 'tok', '', 'wid', '', 'at_lane', lane)
  redis.call('ZADD', S .. 'wait:' .. pool .. ':' .. lane, t, id)
  local cost, cnt = redis.call('HGET', j, 'cost'), S .. 'cnt'
  redis.call('HINCRBY', cnt, 'jobs', 1)
  redis.call('HINCRBY', cnt, 'tokens', cost)
  redis.call('HINCRBY', cnt, 'P:' .. pool, cost)
  if redis.call('HINCRBY', cnt, 'p:' .. pool, 1) == 1 then redis.call('HSET', S .. 'rate:' .. pool, 'from', int(t)) end
  local act = S .. 'act:' .. pool .. ':' .. lane
  if lane ~= 'resume' and lane ~= 'solo' and not redis.call('ZSCORE', act, tenant) then
    local v = tonumber(redis.call('HGET', S .. 'vt', 'V:' .. pool .. ':' .. lane) or '0')
    local f = tonumber(redis.call('HGET', S .. 'vt', 'F:' .. pool .. ':' .. lane .. ':' .. tenant) or '0')
    local least = redis.call('ZRANGE', act, 0, 0, 'WITHSCORES') -- who was idle earns no credit
    redis.call('ZADD', act, math.max(v, f, tonumber(least[2] or '0')), tenant)
    redis.call('HDEL', S .. 'vt', 'F:' .. pool .. ':' .. lane .. ':' .. tenant)
  end
  if not promise(id, j, pool, lane, t) then wake(pool, lane, t) end
end

-- A tenant's part of a lane, in relation to the others'.
local function weight(tenant)
  return tonumber(redis.call('HGET', S .. 'weights', tenant) or WEIGHTS[tenant] or '1')
end

-- Add tokens of service to a job's tenant, in the lane that the job asked for.
local function charge(j, tokens)
  local r = redis.call('HMGET', j, 'pool', 'lane', 'tenant')
  local key, owed = r[1] .. ':' .. r[2], tokens / weight(r[3])
  if redis.call('ZADD', S .. 'act:' .. key, 'XX', 'INCR', owed, r[3]) then return end
  local idle = 'F:' .. key .. ':' .. r[3]
  redis.call('HSETNX', S .. 'vt', idle, redis.call('HGET', S .. 'vt', 'V:' .. key) or '0')
  redis.call('HINCRBYFLOAT', S .. 'vt', idle, owed)
end

-- Put a job that waits nowhere aside until it is due (a claim finds it then).
local function delay(id, j, due)
  redis.call('HSET', j, 'state', 'delayed', 'tok', '', 'wid', '', 'eid', '')
  redis.call('ZADD', S .. 'due', due, id)
end

-- Queue delayed jobs whose time has come.
local function queue_due(t)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', S .. 'due', '-inf', t, 'LIMIT', 0, 32)) do
    local j = S .. 'j:' .. id
    local h = redis.call('HMGET', j, 'state', 'pool', 'lane', 'tenant', 'crashes')
    redis.call('ZREM', S .. 'due', id)
    if h[1] == 'delayed' and legal('requeued', h[1]) then
      log('requeued', id, t, cjson.encode({why = 'due', crashes = tonumber(h[5])}))
      enqueue(id, j, h[2], h[3], h[4], t)
    end
  end
end

-- Take a waiting job out of its lane's index and the counters (its stream entry goes with drop_entry).
local function leave_lane(id, j)
  local r = redis.call('HMGET', j, 'pool', 'at_lane', 'cost')
  if r[2] and redis.call('ZREM', S .. 'wait:' .. r[1] .. ':' .. r[2], id) == 1 then
    local cost, cnt = -tonumber(r[3]), S .. 'cnt'
    if redis.call('HGET', cnt, 'p:' .. r[1]) == '1' then note_drain(r[1], now(), 0, 0) end
    redis.call('HINCRBY', cnt, 'jobs', -1)
    redis.call('HINCRBY', cnt, 'tokens', cost)
    redis.call('HINCRBY', cnt, 'P:' .. r[1], cost)
    redis.call('HINCRBY', cnt, 'p:' .. r[1], -1)
  end
end

-- The first bound that a new job of a lane would pass (lower lanes leave a part to the high one): its name, what is there of it, and what drains per second; nil for none.
local function bound_reached(pool, tenant, lane, cost, t)
  local names = {'jobs', 'p:' .. pool, 't:' .. tenant, 'tokens', 'P:' .. pool, 'T:' .. tenant}
  local used = redis.call('HMGET', S .. 'cnt', unpack(names))
  for i, bound in ipairs(BOUNDS) do
    local have, more = tonumber(used[i] or '0'), i > 3 and cost or 1
    if have + more > bound[lane == 'high' and 2 or 3] then
      local ms, jobs, tokens = drained(pool, t)
      return bound[1], have, ms > 0 and (i > 3 and tokens or jobs) / ms * 1000 or 0
    end
  end
end

-- A backlog goes when it has no entry at all. While one job still refers to an entry it stays, so that a new stream
-- can never give out the same entry id again.
local function drop(q, eid)
  redis.call('XACK', q, 'w', eid)
  redis.call('XDEL', q, eid)
  if redis.call('XLEN', q) == 0 then redis.call('DEL', q) end
end

local function drop_entry(j)
  local r = redis.call('HMGET', j, 'q', 'eid')
  if r[1] and r[2] and r[2] ~= '' then drop(r[1], r[2]) end
end

local function publish(rt, id, gen, seq, payload)
  if not rt or rt == '' then return end
  local message = cmsgpack.pack({id, tonumber(gen), tonumber(seq), payload})
  for node in string.gmatch(rt, '[^,]+') do redis.call('PUBLISH', 'n:' .. node, message) end
end

local function last_sequence(id)
  local last = redis.call('XREVRANGE', S .. 't:' .. id, '+', '-', 'COUNT', 1)
  if not last[1] then return 0 end
  return tonumber(string.match(last[1][1], '%-(%d+)$'))
end

-- What a job has really used of its key's limits, to be settled: the limits live in another hash slot.
local function note_used(budget, id, j, t, data)
  local r, said = redis.call('HMGET', j, 'attempt', 'prompt', 'out'), cjson.decode(data)
  local prompt = tonumber(said['prompt_tokens']) or tonumber(r[2])
  local input = tonumber(r[1]) > 0 and math.max(0, prompt - (tonumber(said['cached_tokens']) or 0)) or 0
  local output = tonumber(said['output_tokens']) or tonumber(r[3])
  redis.call('ZADD', S .. 'used', t, id .. ' ' .. int(input) .. ' ' .. int(output) .. ' ' .. budget)
end

-- Keep what a job shows up to a time in ms ('+inf': for as long as it may run), or let go of it (nil). An image goes with
-- the last job that needs it.
local function hold_images(id, j, until_ms)
  local digests = redis.call('GET', S .. 'i:' .. id)
  if not digests then return end
  local tenant, t = redis.call('HGET', j, 'tenant'), int(now())
  for digest in string.gmatch(digests, '%x+') do
    local image, uses = S .. 'img:' .. tenant .. ':' .. digest, S .. 'uses:' .. tenant .. ':' .. digest
    if until_ms then redis.call('ZADD', uses, until_ms, id) else redis.call('ZREM', uses, id) end
    redis.call('ZREMRANGEBYSCORE', uses, '-inf', '(' .. t)
    local last = redis.call('ZREVRANGE', uses, 0, 0, 'WITHSCORES')
    if not last[1] then
      redis.call('UNLINK', image)
    else
      for _, key in ipairs({image, uses}) do
        if last[2] == 'inf' then redis.call('PERSIST', key) else redis.call('PEXPIREAT', key, last[2]) end
      end
    end
  end
  if not until_ms then redis.call('UNLINK', S .. 'i:' .. id) end
end

-- What is kept of an ended job goes after the usual times.
local function let_expire(id, j)
  hold_images(id, j, int(now() + LOG_TTL_MS))
  for _, kept in ipairs({'t:', 'b:', 'i:'}) do redis.call('PEXPIRE', S .. kept .. id, LOG_TTL_MS) end
  redis.call('PEXPIRE', j, JOB_TTL_MS)
end

-- The common tail of every terminal transition: event, terminal frame, all places left, retention set.
local function finish(event, state, id, j, t, data, frame)
  local r = redis.call('HMGET', j, 'wid', 'tenant', 'rt', 'gen', 'durable', 'pool', 'cost', 'budget')
  log(event, id, t, data)
  local seq = last_sequence(id) + 1
  redis.call('XADD', S .. 't:' .. id, r[4] .. '-' .. int(seq), 'd', frame, 'x', state)
  publish(r[3], id, r[4], seq, frame)
  leave_lane(id, j)
  drop_entry(j)
  redis.call('HSET', j, 'state', state, 'tok', '', 'ended', int(t))
  if r[1] and r[1] ~= '' then
    redis.call('SREM', S .. 'wj:' .. r[1], id)
    local cached = tonumber(string.match(data, '"cached_tokens": ?(%d+)') or '0')
    local out = tonumber(redis.call('HGET', j, 'out') or '0')
    local left = out % CHARGE_TOKENS - cached
    if string.find(data, '"provider":', 1, true) then -- until now its tokens were an estimate
      local told = tonumber(string.match(data, '"output_tokens": ?(%d+)') or out)
      left = left + told - out
      redis.call('HSET', j, 'out', int(told))
    end
    if left ~= 0 then charge(j, left) end
    if tonumber(redis.call('HGET', S .. 'cnt', 'p:' .. r[6]) or '0') > 0 then note_drain(r[6], t, 1, tonumber(r[7])) end
  end
  if r[8] and r[8] ~= '' then note_used(r[8], id, j, t, data) end
  redis.call('ZREM', S .. 'ddl', id)
  redis.call('ZREM', S .. 'due', id)
  if state == 'finished' then hold_images(id, j, nil) end
  redis.call('HINCRBY', S .. 'cnt', 'T:' .. r[2], -tonumber(r[7]))
  if redis.call('HINCRBY', S .. 'cnt', 't:' .. r[2], -1) <= 0 then redis.call('HDEL', S .. 'cnt', 't:' .. r[2], 'T:' .. r[2]) end
  if state == 'dead' then
    redis.call('ZADD', S .. 'dlq', t, id)
  elseif r[5] ~= '1' then -- a durable job's log stays until the projector has stored its result
    let_expire(id, j)
  end
end

-- A terminal transition decided here and not by a worker: what the job has used so far is known from its hash.
local function finish_here(event, state, id, j, t, extra)
  local r = redis.call('HMGET', j, 'out', 'crashes')
  extra['output_tokens'] = tonumber(r[1] or '0')
  extra['crashes'] = tonumber(r[2] or '0')
  finish(event, state, id, j, t, cjson.encode(extra), cmsgpack.pack({state, extra}))
end

-- What was asked of a running job is carried out before the job goes anywhere else; false: nothing was asked.
local function end_as_asked(id, j, t)
  local r = redis.call('HMGET', j, 'cancel', 'cancel_by')
  if r[1] == 'cancelled' then
    finish_here('cancelled', 'cancelled', id, j, t, {by = r[2] or ''})
  elseif r[1] == 'expired' then
    finish_here('expired', 'expired', id, j, t, {error_code = 'deadline_exceeded', error = 'The deadline passed.'})
  else
    return false
  end
  return true
end
