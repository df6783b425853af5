-- Unqualified names: the tables live where the connection's search_path says.
create sequence semel_token;

create table semel_record (
    key bytea primary key,
    token bigint not null default nextval('semel_token'),
    state smallint not null,
    attempt integer not null,
    owner bytea not null,
    fingerprint bytea not null,
    lease_until double precision not null,  -- seconds since the epoch, as all times here
    due_at double precision,    -- completed: when the answer expires; expired: when the tombstone goes
    purge_at double precision,
    answer bytea,
    reason text,
    request bytea
);
-- Answers are mostly small JSON, or compressed already: time spent compressing them is lost.
alter table semel_record alter column answer set storage external;
alter table semel_record alter column request set storage external;
-- Every row is updated once and deleted once: vacuum has to keep up.
alter table semel_record set (autovacuum_vacuum_scale_factor = 0.02, fillfactor = 90);
create index semel_record_due on semel_record (due_at) where due_at is not null;
create index semel_record_abandoned on semel_record (lease_until)
where state = 1 and request is not null;

create table semel_step (
    key bytea not null,
    name text not null,
    result bytea,    -- null: begun, and not known to have ended
    purge_at double precision not null,
    primary key (key, name)
);
create index semel_step_due on semel_step (purge_at);
