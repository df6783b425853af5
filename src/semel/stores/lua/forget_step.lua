-- token, name
if state and not holds(ARGV[2]) then return 0 end
if redis.call('HEXISTS', steps, 'r:' .. ARGV[3]) == 1 then return 0 end
return redis.call('HDEL', steps, 't:' .. ARGV[3])
