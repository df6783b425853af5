select token from semel_record
where due_at <= {now} and purge_at > {now} and state = 2 order by due_at limit :limit {skip_locked}
