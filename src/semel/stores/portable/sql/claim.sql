-- One claim wins: the unique key arbitrates (S1).
{insert} semel_record ("key", state, attempt, owner, fingerprint, lease_until, request)
values (:key, 1, :attempt, :owner, :fingerprint, {now} + :lease, :request) {or_nothing}
