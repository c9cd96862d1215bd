-- Accept a job whole or refuse it whole. Idempotent by job id and by idempotency key.
-- ARGV: id pool tenant lane cost weight rows deadline_in_ms node idem_key body_hash body durable
--       max_jobs max_tokens max_tenant_jobs event_json
-- Returns {'ok'|'dup', id}, {'conflict', id}, {'full'|'full_tokens'|'tenant_full', bound}
local id, pool, tenant, lane, cost, weight, rows, ddl, node, idem, hash, body, durable = unpack(ARGV, 1, 13)
local max_jobs, max_tokens, max_tenant, data = tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16]), ARGV[17]
local j = S .. 'j:' .. id
local known = redis.call('HGET', j, 'state')
if known then return {'dup', id} end
local ik = S .. 'idem:' .. tenant .. ':' .. idem
if idem ~= '' then
  local seen = redis.call('GET', ik)
  if seen then
    local first, first_hash = string.match(seen, '^(%S+) (%S*)$')
    if first_hash == hash then return {'dup', first} end
    return {'conflict', first}
  end
end
local waiting = redis.call('HMGET', S .. 'cnt', 'jobs', 'tokens', 't:' .. tenant)
if tonumber(waiting[1] or '0') >= max_jobs then return {'full', int(max_jobs)} end
if tonumber(waiting[2] or '0') + tonumber(cost) > max_tokens then return {'full_tokens', int(max_tokens)} end
if tonumber(waiting[3] or '0') >= max_tenant then return {'tenant_full', int(max_tenant)} end
if not legal('submitted', known) then return {'illegal', id} end
local t = now()
log('submitted', id, t, data)
redis.call('HSET', j, 'pool', pool, 'tenant', tenant, 'lane', lane, 'cost', cost, 'weight', weight, 'rows', rows,
  'enq', int(t), 'attempt', 0, 'crashes', 0, 'gen', 1, 'out', 0, 'rt', node, 'cancel', '', 'fence', 0, 'durable', durable)
redis.call('SET', S .. 'b:' .. id, body)
if idem ~= '' then redis.call('SET', ik, id .. ' ' .. hash, 'PX', IDEMPOTENCY_TTL_MS) end
if tonumber(ddl) > 0 then
  redis.call('HSET', j, 'ddl', int(t + tonumber(ddl)))
  redis.call('ZADD', S .. 'ddl', t + tonumber(ddl), id)
end
redis.call('HINCRBY', S .. 'cnt', 't:' .. tenant, 1)
enqueue(id, j, pool, lane, tenant, t)
redis.call('PUBLISH', S .. 'wake:' .. pool, '1')
return {'ok', id}
