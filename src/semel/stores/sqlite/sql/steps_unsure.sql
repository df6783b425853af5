delete from semel_step where key = ? and result is null
