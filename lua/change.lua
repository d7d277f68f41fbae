#!lua
-- Changes the settings of all gateways: persisted limits and overrides, with
-- an entry in the audit trail, and tells the gateways. All or nothing.
--
-- KEYS   [1] limits, a hash: resource -> limits as JSON
--        [2] overrides, a hash: user and resource, escaped -> the override as JSON
--        [3] expiry, a sorted set: the fields of [2] that expire -> when, in ms of Redis' clock
--        [4] version, an integer that grows with every change: at least Redis' clock in
--        microseconds, so that none comes twice, also after Redis has lost what it held
--        [5] audit, a list: '<ms of Redis' clock> <entry as JSON>', newest first
-- ARGV   [1] the entry, [2] how many entries are kept, [3] channel to tell the version on,
--        then five for each operation: 'limits' or 'override'; the field; the value, or '' to
--        drop the field; how many fields there may be at most; and
--        for an override its time to live in ms, 0 for good. Without any operation the gateways are told all the same:
--        they forget what they remember of buckets.
-- Returns 1, or 0 if there are too many fields already and nothing was changed.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Overrides that are over make room first.
local over = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now)
for i = 1, #over do
  redis.call('HDEL', KEYS[2], over[i])
  redis.call('ZREM', KEYS[3], over[i])
end

for i = 4, #ARGV, 5 do
  local key = ARGV[i] == 'limits' and KEYS[1] or KEYS[2]
  if ARGV[i + 2] ~= '' and redis.call('HEXISTS', key, ARGV[i + 1]) == 0
      and redis.call('HLEN', key) >= tonumber(ARGV[i + 3]) then
    return 0
  end
end
for i = 4, #ARGV, 5 do
  local limits, field, value, ttl = ARGV[i] == 'limits', ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 4])
  local key = limits and KEYS[1] or KEYS[2]
  if value == '' then redis.call('HDEL', key, field) else redis.call('HSET', key, field, value) end
  if not limits then
    if value ~= '' and ttl > 0 then redis.call('ZADD', KEYS[3], now + ttl, field)
    else redis.call('ZREM', KEYS[3], field) end
  end
end
redis.call('LPUSH', KEYS[5], string.format('%.0f ', now) .. ARGV[1])
redis.call('LTRIM', KEYS[5], 0, ARGV[2] - 1)
local version = math.max(tonumber(redis.call('GET', KEYS[4]) or 0) + 1, time[1] * 1000000 + time[2])
redis.call('SET', KEYS[4], string.format('%.0f', version))
redis.call('PUBLISH', ARGV[3], string.format('%.0f', version))
return 1
