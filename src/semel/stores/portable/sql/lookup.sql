select {record_columns}, {now} from semel_record where "key" = :key
