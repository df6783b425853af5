delete from semel_record where token in (:ids) and state in (2, 4)
