select name, result from semel_step where "key" = :key
