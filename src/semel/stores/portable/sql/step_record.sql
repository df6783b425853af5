-- The first result stays (S10). What stands is given back by the statement itself, where that can be:
-- on a snapshot, a read after it may see the row of an earlier life too.
insert into semel_step ("key", name, result, purge_at) values (:key, :name, :result, {now} + :keep)
{or_update} result = coalesce(semel_step.result, :result), purge_at = {now} + :keep
{returning_result}
