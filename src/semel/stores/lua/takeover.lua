-- token, fingerprint, lease, owner, expired, request
if not state then return false end
local over = ARGV[6] == '1' and state == '4'
    or ARGV[6] == '0' and state == '1' and tonumber(get('lease')) <= now
if not over or get('token') ~= ARGV[2] then return found() end
local attempt = '1'
if state == '1' then attempt = whole(tonumber(get('attempt')) + 1) else redis.call('DEL', steps) end
return grant(attempt, ARGV[5], ARGV[3], ARGV[4], ARGV[7])
