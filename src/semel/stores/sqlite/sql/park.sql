-- By the holder, or by anybody once the lease has ended.
update semel_record set state = 3, reason = :reason
where token = :token and key = :key and state = 1 and (not :lapsed or lease_until <= :now)
