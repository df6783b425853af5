-- token, answer ('' or '=' and its bytes), expires, tombstone
if state ~= '3' or get('token') ~= ARGV[2] then return 0 end
if ARGV[3] ~= '' then
    write_answer(string.sub(ARGV[3], 2), ARGV[4], ARGV[5])
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
