-- By the holder, or by anybody once the lease has ended.
update semel_django_record set state = 3, reason = %s
where token = %s and key_hash = %s and state = 1 and (%s = 0 or lease_until <= {now})
