-- token, name, result ('' or '=' and its bytes), keep; the first result stays (S10)
forget_old_steps()
if state and not holds(ARGV[2]) then return false end
redis.call('HSET', steps, 't:' .. ARGV[3], text(now + tonumber(ARGV[5])))
if ARGV[4] ~= '' then redis.call('HSETNX', steps, 'r:' .. ARGV[3], string.sub(ARGV[4], 2)) end
if state then redis.call('HSET', record, 'keep', ARGV[5]) end
return {redis.call('HGET', steps, 'r:' .. ARGV[3])}
