select result from semel_step where "key" = :key and name = :name
