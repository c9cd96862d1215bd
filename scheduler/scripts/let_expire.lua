-- The record has these ended jobs: what is kept of them here goes after the usual times. Idempotent.
-- ARGV: ids
-- Returns how many
go()
for _, id in ipairs(ARGV) do let_expire(id, S .. 'j:' .. id) end
return #ARGV
