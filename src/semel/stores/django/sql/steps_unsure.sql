delete from semel_django_step where key_hash = %s and result is null
