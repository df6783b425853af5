-- A parked operation of which nothing happened after all.
delete from semel_record where token = ? and key = ? and state = 3
