select token, "key" from semel_record where token in (:tokens) and state = 1
