select token, state from semel_django_record where key_hash = %s {lock}
