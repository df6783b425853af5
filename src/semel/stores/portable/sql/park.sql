-- By the holder, or by anybody once the lease has ended.
update semel_record set state = 3, reason = :reason
where "key" = :key and token = :token and state = 1 and (:lapsed = 0 or lease_until <= {now})
