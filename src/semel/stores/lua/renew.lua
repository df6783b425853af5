-- token, lease
if not holds(ARGV[2]) then return 0 end
redis.call('HSET', record, 'lease', text(math.max(tonumber(get('lease')), now + tonumber(ARGV[3]))))
return 1
