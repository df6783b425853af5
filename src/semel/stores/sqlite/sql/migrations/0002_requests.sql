-- The request itself, where its policy remembers it, until the operation ends.
alter table semel_record add column request blob;
create index semel_record_abandoned on semel_record (lease_until)
where state = 1 and request is not null;
