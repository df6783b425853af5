select result from semel_django_step where digest = %s
