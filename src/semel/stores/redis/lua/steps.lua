local function command()
    forget_old_steps()
    local told = {}
    for _, field in ipairs(redis.call('HKEYS', steps)) do
        if string.sub(field, 1, 2) == 't:' then
            local name = string.sub(field, 3)
            table.insert(told, name)
            table.insert(told, redis.call('HGET', steps, 'r:' .. name) or false)
        end
    end
    return told
end
