select key_hash, state, token, owner, attempt, fingerprint, lease_until, due_at, purge_at, answer,
       reason, {now}
from semel_django_record where key_hash = %s
