-- Compare and delete: a claim that was lost cannot be released (S5).
delete from semel_record where "key" = :key and token = :token and state = 1
