select distinct key from semel_step where purge_at <= ? limit ?
