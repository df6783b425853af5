-- Steps whose time is over, unless their operation is in flight or parked.
select s.id from semel_step s
where s.purge_at <= {now} and not exists (
    select 1 from semel_record r where r."key" = s."key" and r.state in (1, 3)
) order by s.purge_at limit :limit {skip_locked}
