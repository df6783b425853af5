select token from semel_django_record
where due_at <= {now} and purge_at > {now} and state = 2 order by token limit %s
