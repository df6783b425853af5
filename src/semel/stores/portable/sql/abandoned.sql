select "key", token, attempt, request from semel_record
where state = 1 and request is not null and lease_until <= {now} - :idle
order by lease_until limit :limit
