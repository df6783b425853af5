-- The first result stays (S10).
insert into semel_step ("key", name, result, purge_at) values (:key, :name, :result, {now} + :keep)
{or_update} result = coalesce(semel_step.result, :result), purge_at = {now} + :keep
