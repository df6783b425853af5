-- Write once, by the holder of the claim only (S4, S5).
update semel_django_record
set state = 2, request = null, answer = %s, due_at = {now} + %s, purge_at = {now} + %s
where token = %s and key_hash = %s and state = 1
