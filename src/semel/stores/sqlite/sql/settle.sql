-- A parked operation whose answer is known after all.
update semel_record set state = 2, reason = null, request = null, answer = ?, due_at = ?, purge_at = ?
where token = ? and key = ? and state = 3
