{insert} semel_django_step (digest, key_hash, name, result, purge_at)
values (%s, %s, %s, null, {now} + %s) {ignore}
