local function command(token, body, expires, tombstone)
    if not holds(token) then return 0 end
    write_answer(body, expires, tombstone)
    return 1
end
