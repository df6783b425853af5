-- Comes after every script. An error is that command's own; those before and after it have been done.
local each = tonumber(ARGV[2])
local function carry_out(number)
    record, answer, steps, request = unpack(KEYS, 4 * number - 3, 4 * number)
    look()
    return command(unpack(ARGV, 3 + (number - 1) * each, 2 + number * each))
end
local told = {}
for number = 1, #KEYS / 4 do
    local done, reply = pcall(carry_out, number)
    if not done and type(reply) ~= 'table' then reply = {err = tostring(reply)} end
    told[number] = reply
end
return told
