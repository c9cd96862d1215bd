-- A job has ended, or was never accepted: charge what it really used instead of what it asked for, free its place.
-- ARGV: id requests(1, or 0: as if it had not been asked) input output
-- Returns 1, or 0 where there is nothing to settle (any more)
local charged = redis.call('HGET', LEVEL, 'j:' .. ARGV[1])
if not charged then return 0 end
local began, input, output = string.match(charged, '^(%S+) (%S+) (%S+)$')
local t = now()
local used, limits = levels(t), of_each('limit')
local change = {tonumber(ARGV[2]) - 1, tonumber(ARGV[3]) - tonumber(input), tonumber(ARGV[4]) - tonumber(output)}
change[4] = change[2] + change[3]
for i in ipairs(KINDS) do
  if limits[i] > 0 then used[i] = math.max(0, used[i] + change[i]) end
end
keep(used, t)
if ARGV[2] == '1' then
  local held = tonumber(redis.call('HGET', LEVEL, 'held') or '-1')
  local this = t - tonumber(began)
  redis.call('HSET', LEVEL, 'held', held < 0 and this or held + (this - held) / 8)
end
redis.call('HDEL', LEVEL, 'j:' .. ARGV[1])
redis.call('ZREM', JOBS, ARGV[1])
return 1
