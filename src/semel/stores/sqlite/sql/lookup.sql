select {columns} from semel_record where key = ?
