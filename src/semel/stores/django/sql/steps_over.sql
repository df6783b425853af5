select s.digest from semel_django_step s
where s.purge_at <= {now} and not exists (
    select 1 from semel_django_record r where r.key_hash = s.key_hash and r.state in (1, 3)
) order by s.digest limit %s
