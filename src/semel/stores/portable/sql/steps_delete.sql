delete from semel_step where "key" = :key
