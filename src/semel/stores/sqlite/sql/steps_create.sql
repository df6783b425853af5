create table if not exists semel_step (
    key blob not null,
    name text not null,
    result blob,    -- null: begun, and not known to have ended
    purge_at real not null,
    primary key (key, name)
) without rowid
