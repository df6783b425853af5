-- The response goes, the key stays refused until purge_at.
update semel_record set state = 4, answer = null, due_at = purge_at
where token in (:ids) and state = 2
