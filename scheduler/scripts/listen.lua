-- An API node asks for a job's frames from now on (add) or no more (remove). A job whose client had left goes on then.
-- ARGV: id node add(1|0)
-- Returns the state, or unknown
local j = S .. 'j:' .. ARGV[1]
local h = redis.call('HMGET', j, 'state', 'rt', 'left', 'ddl')
if not h[1] then return 'unknown' end
go()
local nodes = {}
for node in string.gmatch(h[2] or '', '[^,]+') do
  if node ~= ARGV[2] then nodes[#nodes + 1] = node end
end
if ARGV[3] == '1' then nodes[#nodes + 1] = ARGV[2] end
if ARGV[3] == '1' and h[3] then
  redis.call('HDEL', j, 'left')
  if h[4] then redis.call('ZADD', S .. 'ddl', 'XX', h[4], ARGV[1]) else redis.call('ZREM', S .. 'ddl', ARGV[1]) end
end
redis.call('HSET', j, 'rt', table.concat(nodes, ','))
return h[1]
