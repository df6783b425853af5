delete from semel_step where id in (:ids) and purge_at <= {now}
