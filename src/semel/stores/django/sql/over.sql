-- Tombstones whose time is over, and answers that leave none. In-flight and parked records have no
-- due_at and are never touched; steps go before their record.
select r.token from semel_django_record r
where r.due_at <= {now} and r.purge_at <= {now} and r.state in (2, 4)
  and not exists (select 1 from semel_django_step s where s.key_hash = r.key_hash)
order by r.token limit %s
