delete from semel_step where "key" = :key and result is null
