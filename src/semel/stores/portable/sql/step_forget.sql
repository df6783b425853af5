delete from semel_step where "key" = :key and name = :name and result is null
