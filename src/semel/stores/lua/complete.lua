-- token, answer, expires, tombstone
if not holds(ARGV[2]) then return 0 end
write_answer(ARGV[3], ARGV[4], ARGV[5])
return 1
