-- A parked operation whose response is known after all.
update semel_record
set state = 2, reason = null, request = null, answer = :answer, due_at = {now} + :expires,
    purge_at = {now} + :ends
where "key" = :key and token = :token and state = 3
