select name, result from semel_django_step where key_hash = %s
