-- One claim wins: the unique key arbitrates (S1). What a database does where the key is taken is
-- said in its own words, before and after.
{insert} semel_django_record
    (key_hash, state, attempt, owner, fingerprint, lease_until, request)
values (%s, 1, %s, %s, %s, {now} + %s, %s) {ignore}
