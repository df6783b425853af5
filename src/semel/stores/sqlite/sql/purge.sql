-- Tombstones whose time is over, and answers that leave none. In-flight and parked records have no
-- due_at and are never touched.
delete from semel_record where token in (
    select token from semel_record
    where due_at <= :now and purge_at <= :now and state in (2, 4) limit :limit
)
