-- Compare and delete: a claim that was lost cannot be released (S5).
delete from semel_record where token = ? and key = ? and state = 1
