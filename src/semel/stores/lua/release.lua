-- token
if not holds(ARGV[2]) then return 0 end
forget()
return 1
