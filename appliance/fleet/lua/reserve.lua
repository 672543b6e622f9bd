-- Reserve part of a budget once: the same reservation again, after an answer that was lost, charges nothing more.
-- KEYS: the hash of the window {used, r:ID = granted}.  ARGV: id, wanted, limit, seconds until it can go.
local known = redis.call('HGET', KEYS[1], 'r:' .. ARGV[1])
if known then return { tonumber(known), tonumber(redis.call('HGET', KEYS[1], 'used')) } end
local used = tonumber(redis.call('HGET', KEYS[1], 'used') or 0)
local granted = math.max(0, math.min(tonumber(ARGV[2]), tonumber(ARGV[3]) - used))
redis.call('HSET', KEYS[1], 'used', string.format('%.0f', used + granted), 'r:' .. ARGV[1], string.format('%.0f', granted))
redis.call('EXPIRE', KEYS[1], ARGV[4])
return { granted, used + granted }
