select key_hash, token, attempt, request from semel_django_record
where state = 1 and request is not null and lease_until <= {now} - %s
order by lease_until limit %s
