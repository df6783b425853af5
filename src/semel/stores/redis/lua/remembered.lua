-- What is remembered of a claim in flight: token, attempt, request, and when its lease ends.
local function command()
    if state ~= '1' or redis.call('EXISTS', request) == 0 then return false end
    return {get('token'), get('attempt'), redis.call('GET', request), get('lease'), text(now)}
end
