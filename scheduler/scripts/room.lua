-- Would a new job pass a bound? Asked where the job is committed elsewhere first. Writes nothing.
-- ARGV: pool tenant lane cost
-- Returns {'ok'} or {'full', name of the bound, what is there of it, drained per second}
local bound, used, per_s = bound_reached(ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), now())
if bound then return {'full', bound, int(used), tostring(per_s)} end
return {'ok'}
