-- Tombstones whose time is over, and responses that leave none. In-flight and parked records have
-- no due_at and are never touched; steps go before their record; rows in use are left.
select r.token from semel_record r
where r.due_at <= {now} and r.purge_at <= {now} and r.state in (2, 4)
  and not exists (select 1 from semel_step s where s."key" = r."key")
order by r.due_at limit :limit {skip_locked}
