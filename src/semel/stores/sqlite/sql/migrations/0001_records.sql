-- The token is the rowid. AUTOINCREMENT never gives one out twice, not even after a delete, so a
-- fencing token is unique in the file and grows with each claim of a key.
-- A rowid table with a UNIQUE 16-byte key: 2.3 to 2.9 times faster than WITHOUT ROWID once answers
-- are stored in the row.
create table semel_record (
    token integer primary key autoincrement,
    key blob not null unique,
    state integer not null,
    attempt integer not null,
    owner blob not null,
    fingerprint blob not null,
    lease_until real not null,
    due_at real,    -- completed: when the answer expires; expired: when the tombstone goes
    purge_at real,
    answer blob,
    reason text
);
create index semel_record_due on semel_record (due_at) where due_at is not null;
