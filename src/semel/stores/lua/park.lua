-- token, reason, lapsed
if not holds(ARGV[2]) or ARGV[4] == '1' and tonumber(get('lease')) > now then return 0 end
redis.call('HSET', record, 'state', '3', 'reason', ARGV[3])
return 1
