-- A parked operation whose answer is known after all.
update semel_django_record
set state = 2, reason = null, request = null, answer = %s, due_at = {now} + %s,
    purge_at = {now} + %s
where token = %s and key_hash = %s and state = 3
