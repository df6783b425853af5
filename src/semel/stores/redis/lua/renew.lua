local function command(token, lease)
    if not holds(token) then return 0 end
    redis.call('HSET', record, 'lease', text(math.max(tonumber(get('lease')), now + tonumber(lease))))
    return 1
end
