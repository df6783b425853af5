delete from semel_step where key = ? and purge_at <= ?
