-- Which of many silent jobs have something to say that their follower on a node has not heard, or must be listened for
-- again? One call instead of three for each of thousands of streams. Writes nothing.
-- ARGV: node, then repeated (id, sequence heard last)
-- Returns the places (from 1) of the jobs whose follower must look: forgotten, client had left, node not listed, or a log
-- of another length
local node, out = ',' .. ARGV[1] .. ',', {}
for i = 2, #ARGV, 2 do
  local h = redis.call('HMGET', S .. 'j:' .. ARGV[i], 'state', 'rt', 'left')
  local listed = string.find(',' .. (h[2] or '') .. ',', node, 1, true)
  if not h[1] or h[3] or not listed or redis.call('XLEN', S .. 't:' .. ARGV[i]) ~= tonumber(ARGV[i + 1]) then
    out[#out + 1] = i / 2
  end
end
return out
