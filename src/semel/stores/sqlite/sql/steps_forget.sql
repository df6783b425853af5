delete from semel_step where key = ? and name = ? and result is null
