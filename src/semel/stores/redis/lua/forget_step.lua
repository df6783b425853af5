local function command(token, name)
    if state and not holds(token) then return 0 end
    if redis.call('HEXISTS', steps, 'r:' .. name) == 1 then return 0 end
    return redis.call('HDEL', steps, 't:' .. name)
end
