-- End jobs that wait for a pool which will not serve them. Bounded work per call.
-- ARGV: pool limit error_code error
-- Returns the number of jobs ended
go()
local pool, limit = ARGV[1], tonumber(ARGV[2])
local t, ended = now(), 0
for _, lane in ipairs({'resume', 'solo', unpack(LANES)}) do
  for _, id in ipairs(redis.call('ZRANGE', S .. 'wait:' .. pool .. ':' .. lane, 0, limit - ended - 1)) do
    local j = S .. 'j:' .. id
    if legal('failed', redis.call('HGET', j, 'state')) then
      finish_here('failed', 'failed', id, j, t, {error_code = ARGV[3], error = ARGV[4]})
      ended = ended + 1
    end
  end
  if ended >= limit then break end
end
return ended
