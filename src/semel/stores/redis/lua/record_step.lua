-- `result`: '' or '=' and its bytes; the first stays (S10).
local function command(token, name, result, keep)
    forget_old_steps()
    if state and not holds(token) then return false end
    redis.call('HSET', steps, 't:' .. name, text(now + tonumber(keep)))
    if result ~= '' then redis.call('HSETNX', steps, 'r:' .. name, string.sub(result, 2)) end
    if state then
        redis.call('HSET', record, 'keep', keep, 'stepped', '1')
    else  -- an opened operation's, or one that was given back: they go by themselves
        redis.call('PEXPIRE', steps, milliseconds(tonumber(keep)))
    end
    return {redis.call('HGET', steps, 'r:' .. name)}
end
