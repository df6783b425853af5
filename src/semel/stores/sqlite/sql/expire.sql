-- The answer goes, the key stays refused until purge_at.
update semel_record set state = 4, answer = null, due_at = purge_at where token in (
    select token from semel_record where due_at <= :now and state = 2 limit :limit
)
