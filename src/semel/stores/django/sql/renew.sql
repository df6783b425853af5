-- The token decides, not the time: a lease that ended is renewed while nobody has taken over.
update semel_django_record
set lease_until = case when lease_until < {now} + %s then {now} + %s else lease_until end
where token in ({tokens}) and state = 1
