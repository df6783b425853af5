local function command(token, fingerprint, lease, owner, expired, remembered)
    if not state then return false end
    local over = expired == '1' and state == '4'
        or expired == '0' and state == '1' and tonumber(get('lease')) <= now
    if not over or get('token') ~= token then return found() end
    local attempt = '1'
    if state == '1' then attempt = whole(tonumber(get('attempt')) + 1) else redis.call('DEL', steps) end
    return grant(attempt, owner, fingerprint, lease, remembered)
end
