-- One claim wins: the unique key arbitrates (S1).
insert into semel_record (key, state, attempt, owner, fingerprint, lease_until, request)
values (?, 1, ?, ?, ?, ?, ?)
on conflict (key) do nothing
