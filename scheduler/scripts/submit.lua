-- Accept a job whole or refuse it whole. Idempotent by job id and by idempotency key.
-- ARGV: id pool tenant lane cost rows deadline_in_ms node idem_key body_hash body durable
--       prompt_tokens budget delay_ms(0: at once) event_json marks digests(of its images, in order)
--       image...(each one once)
-- Returns {'ok'|'dup'|'conflict', id} or {'full', name of the bound, what is there of it, drained per second}
local id, pool, tenant, lane, cost, rows, ddl, node, idem, hash, body, durable = unpack(ARGV, 1, 12)
local prompt, budget, wait, data, marks, digests = ARGV[13], ARGV[14], tonumber(ARGV[15]), unpack(ARGV, 16, 18)
local event = wait > 0 and 'scheduled' or 'submitted'
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
local t = now()
local bound, used, per_s = bound_reached(pool, tenant, lane, tonumber(cost), t)
if bound then return {'full', bound, int(used), tostring(per_s)} end
if not legal(event, known) then return {'illegal', id} end
log(event, id, t, data)
redis.call('HSET', j, 'pool', pool, 'tenant', tenant, 'lane', lane, 'cost', cost, 'rows', rows,
  'enq', int(t), 'attempt', 0, 'crashes', 0, 'gen', 1, 'out', 0, 'rt', node, 'cancel', '', 'fence', 0, 'durable', durable,
  'prompt', prompt, 'budget', budget)
redis.call('SET', S .. 'b:' .. id, body)
if marks ~= '' then redis.call('HSET', j, 'marks', marks) end
if digests ~= '' then
  local file, stored = 18, {}
  for digest in string.gmatch(digests, '%x+') do
    if not stored[digest] then
      file, stored[digest] = file + 1, true
      redis.call('SET', S .. 'img:' .. tenant .. ':' .. digest, ARGV[file])
    end
  end
  redis.call('SET', S .. 'i:' .. id, digests)
  hold_images(id, j, '+inf')
end
if idem ~= '' then redis.call('SET', ik, id .. ' ' .. hash, 'PX', IDEMPOTENCY_TTL_MS) end
if tonumber(ddl) > 0 then
  redis.call('HSET', j, 'ddl', int(t + tonumber(ddl)))
  redis.call('ZADD', S .. 'ddl', t + tonumber(ddl), id)
end
redis.call('HINCRBY', S .. 'cnt', 't:' .. tenant, 1)
redis.call('HINCRBY', S .. 'cnt', 'T:' .. tenant, cost)
if wait > 0 then
  delay(id, j, t + wait)
else
  enqueue(id, j, pool, lane, tenant, t)
end
return {'ok', id}
