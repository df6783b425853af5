-- The first result stays (S10).
insert into semel_step (key, name, result, purge_at) values (?, ?, ?, ?)
on conflict (key, name) do update
set result = coalesce(result, excluded.result), purge_at = excluded.purge_at
returning result
