-- Write once, by the holder of the claim only (S4, S5).
update semel_record
set state = 2, request = null, answer = :answer, due_at = {now} + :expires, purge_at = {now} + :ends
where "key" = :key and token = :token and state = 1
