-- A parked operation of which nothing happened after all.
delete from semel_django_record where token = %s and key_hash = %s and state = 3
