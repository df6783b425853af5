-- The token decides, not the time: a lease that ended is renewed while nobody has taken over.
update semel_record set lease_until = max(lease_until, ?) where token = ? and key = ? and state = 1
