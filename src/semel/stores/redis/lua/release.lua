local function command(token)
    if not holds(token) then return 0 end
    forget()
    return 1
end
