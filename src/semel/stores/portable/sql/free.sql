-- Those that nobody is completing this moment, locked in one order: two who renew never wait for
-- each other in a circle.
select token from semel_record where token in (:tokens) and state = 1 order by token {skip_locked}
