select key, state, token, owner, attempt, fingerprint, lease_until, due_at, purge_at, answer, reason
from semel_record where key = ?
