select token, key_hash from semel_django_record
where token in ({tokens}) and state = 1 order by token {lock}
