-- The answer goes, the key stays refused until purge_at.
update semel_django_record set state = 4, answer = null, due_at = purge_at
where token in ({tokens}) and state = 2
