-- The first result stays (S10).
update semel_django_step set result = coalesce(result, %s), purge_at = {now} + %s where digest = %s
