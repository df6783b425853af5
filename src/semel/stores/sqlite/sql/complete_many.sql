-- All of them are written, or none is: one of the claims is no longer its holder's (S4, S5).
with done (token, key, answer, due_at, purge_at) as (values {rows})
update semel_record set
    state = 2, request = null, answer = done.answer, due_at = done.due_at, purge_at = done.purge_at
from done
where semel_record.token = done.token and semel_record.key = done.key and semel_record.state = 1
and {count} = (
    select count(*) from done join semel_record as held
    on held.token = done.token and held.key = done.key where held.state = 1
)
