delete from semel_django_step where digest = %s and result is null
