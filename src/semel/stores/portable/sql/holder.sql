-- Who holds a key; it stays so until the end of the transaction.
select token, state from semel_record where "key" = :key {lock}
