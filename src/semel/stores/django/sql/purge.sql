delete from semel_django_record where token in ({tokens}) and state in (2, 4)
