-- The circuit of one provider's model, shared by all workers: closed, open until a time, half open with one probe at a
-- time. Every transition is appended to the log of model events in the same step.
-- KEYS: {farm}:circuit:<model> HASH (state, failures, since, until), {farm}:model-events STREAM
-- ARGV: what (ask|good|bad) worker model failures window_ms open_ms probe_ms reason events_kept
-- Returns {state, ms until it may be asked again (0: now)}; one that answers ask with half_open and 0 is the probe.
local key, what = KEYS[1], ARGV[1]
local failures, window, open, probe = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local r = redis.call('TIME')
local t = tonumber(r[1]) * 1000 + math.floor(tonumber(r[2]) / 1000)
local h = redis.call('HMGET', key, 'state', 'failures', 'since', 'until')
local state, count, since, rest = h[1] or 'closed', tonumber(h[2] or '0'), tonumber(h[3] or '0'), tonumber(h[4] or '0') - t

local function int(n) return string.format('%.0f', n) end

local function become(new, till, event)
  redis.call('HSET', key, 'state', new, 'failures', 0, 'since', 0, 'until', int(till))
  redis.call('PEXPIRE', key, 86400000)
  local fact = {agent = ARGV[2], event = event, model = ARGV[3], from = state, why = ARGV[8]}
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[9], '*', 'd', cjson.encode(fact))
end

if what == 'ask' then
  if state == 'closed' then return {state, 0} end
  if rest > 0 then return {state, rest} end
  if state == 'open' then
    become('half_open', t + probe, 'circuit_half_open')
  else -- the probe has not come back
    redis.call('HSET', key, 'until', int(t + probe))
  end
  return {'half_open', 0}
end
if what == 'good' then
  if state == 'half_open' then become('closed', 0, 'circuit_closed') end
  if state == 'closed' and count > 0 then redis.call('DEL', key) end
  return {state == 'open' and state or 'closed', 0}
end
if state == 'half_open' then
  become('open', t + open, 'circuit_opened')
  return {'open', open}
end
if state == 'open' then return {state, math.max(0, rest)} end
if t - since > window then count, since = 0, t end
if count + 1 >= failures then
  become('open', t + open, 'circuit_opened')
  return {'open', open}
end
redis.call('HSET', key, 'state', 'closed', 'failures', count + 1, 'since', int(since), 'until', 0)
redis.call('PEXPIRE', key, window)
return {'closed', 0}
