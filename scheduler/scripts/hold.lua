-- Take, keep or give up the right to bring a model into memory: one agent at a time has it. Idempotent.
-- KEYS: {farm}:placing:<model>   ARGV: agent ttl_ms (0: give it up)
-- Returns 1 where this agent has the right now
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
