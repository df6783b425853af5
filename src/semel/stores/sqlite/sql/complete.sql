-- Write once, by the holder of the claim only (S4, S5).
update semel_record set state = 2, request = null, answer = ?, due_at = ?, purge_at = ?
where token = ? and key = ? and state = 1
