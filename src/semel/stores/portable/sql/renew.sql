-- The token decides, not the time: a lease that ended is renewed while nobody has taken over.
update semel_record set lease_until = {now} + :lease
where token in (:tokens) and state = 1 and lease_until < {now} + :lease
