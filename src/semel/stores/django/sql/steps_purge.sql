delete from semel_django_step where digest in ({digests}) and purge_at <= {now}
