-- One call per engine step for the whole batch: compare-and-append to each job's token log, one message per node.
-- ARGV: repeated (id, token, generation, sequence, tokens, payload)
-- Returns per job: 0 ok, 1 ok and please stop (cancelled), 2 fenced (nothing written), 3 duplicate, 4 gap (log is
-- shorter than the writer thinks: send again from its end), 5 ok and please stop (deadline passed)
go()
local out, nodes = {}, {}
for i = 1, #ARGV, 6 do
  local id, gen, seq, payload = ARGV[i], ARGV[i + 2], ARGV[i + 3], ARGV[i + 5]
  local j, stream = S .. 'j:' .. id, S .. 't:' .. id
  local h = redis.call('HMGET', j, 'tok', 'cancel', 'rt')
  local code
  local length = redis.call('XLEN', stream)
  if ARGV[i + 1] == '' or h[1] ~= ARGV[i + 1] then
    code = 2
  elseif length < tonumber(seq) - 1 then
    code = 4
  elseif length >= tonumber(seq) then -- a later generation would get past XADD's own check
    code = 3
  else
    local added = redis.pcall('XADD', stream, gen .. '-' .. seq, 'd', payload)
    if type(added) == 'table' and added.err then
      if not string.find(added.err, 'equal or smaller') then return added end
      code = 3
    else
      local produced, tokens = redis.call('HINCRBY', j, 'out', ARGV[i + 4]), tonumber(ARGV[i + 4])
      local steps = math.floor(produced / CHARGE_TOKENS) - math.floor((produced - tokens) / CHARGE_TOKENS)
      if steps > 0 then charge(j, steps * CHARGE_TOKENS) end
      code = (h[2] == 'cancelled' and 1) or (h[2] == 'expired' and 5) or 0
      if h[3] and h[3] ~= '' then
        local message = cmsgpack.pack({id, tonumber(gen), tonumber(seq), payload})
        for node in string.gmatch(h[3], '[^,]+') do
          local batch = nodes[node]
          if not batch then batch = {} nodes[node] = batch end
          batch[#batch + 1] = message
        end
      end
    end
  end
  out[#out + 1] = code
end
for node, batch in pairs(nodes) do redis.call('PUBLISH', 'n:' .. node, table.concat(batch)) end
return out
