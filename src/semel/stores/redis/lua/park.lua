local function command(token, reason, lapsed)
    if not holds(token) or lapsed == '1' and tonumber(get('lease')) > now then return 0 end
    redis.call('HSET', record, 'state', '3', 'reason', reason)
    return 1
end
