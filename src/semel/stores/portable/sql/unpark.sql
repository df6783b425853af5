-- A parked operation of which nothing happened after all.
delete from semel_record where "key" = :key and token = :token and state = 3
