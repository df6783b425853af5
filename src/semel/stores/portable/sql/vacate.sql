-- First half of a takeover: only while the record holds the token that was seen and is over in the
-- way that was seen. The claim that follows gets a new, higher token (S5).
delete from semel_record
where "key" = :key and token = :token
  and ((:expired = 1 and ((state = 2 and due_at <= {now}) or state = 4))
    or (:expired = 0 and state = 1 and lease_until <= {now}))
