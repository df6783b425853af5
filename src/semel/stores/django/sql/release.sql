-- Compare and delete: a claim that was lost cannot be released (S5).
delete from semel_django_record where token = %s and key_hash = %s and state = 1
