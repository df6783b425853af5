-- `body`: '' or '=' and its bytes
local function command(token, body, expires, tombstone)
    if state ~= '3' or get('token') ~= token then return 0 end
    if body ~= '' then
        write_answer(string.sub(body, 2), expires, tombstone)
        return 1
    end
    forget()
    for _, field in ipairs(redis.call('HKEYS', steps)) do
        local name = string.sub(field, 3)
        if string.sub(field, 1, 2) == 't:' and redis.call('HEXISTS', steps, 'r:' .. name) == 0 then
            redis.call('HDEL', steps, field)
        end
    end
    return 1
end
