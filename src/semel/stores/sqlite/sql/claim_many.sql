-- All of them win, or the statement fails and none has: somebody has one of the keys (S1).
insert into semel_record (token, key, state, attempt, owner, fingerprint, lease_until, request)
with asked (n, key, owner, fingerprint, lease_until, request) as (values {rows})
select (select coalesce(max(seq), 0) from sqlite_sequence where name = 'semel_record') + n,
    key, 1, 1, owner, fingerprint, lease_until, request
from asked
