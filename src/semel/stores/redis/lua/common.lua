-- Comes before every script. A call carries out one command or many of a kind, each in its own right.
-- KEYS, for each: the record, its answer, its steps, its request: one slot.
-- ARGV[1]: the time in seconds, or empty for the server's own. ARGV[2]: how many arguments each has.
local record, answer, steps, request
local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local function text(number) return string.format('%.6f', number) end
local function whole(number) return string.format('%.0f', number) end
local fields = {'state', 'token', 'due', 'purge', 'last', 'lease', 'attempt', 'keep', 'asked', 'stepped'}
local is, state, stepless
local function get(field) return is[field] end
local function milliseconds(seconds) return whole(math.max(seconds * 1000, 1)) end

-- A record that goes leaves its token for a day, so that the next is higher (S5).
local function forget()
    local last = get('token') or get('last')
    local keep = tonumber(get('keep') or '86400')
    redis.call('DEL', record, answer, request)
    redis.call('HSET', record, 'last', last)
    redis.call('PEXPIRE', record, '86400000')
    redis.call('PEXPIRE', steps, milliseconds(keep))
    is = {last = last}
end

-- What is due has its effect when it is looked at; the server's own expiry frees the memory.
local function look()
    is, stepless = {}, false
    local values = redis.call('HMGET', record, unpack(fields))
    for at = 1, #fields do is[fields[at]] = values[at] end
    state = get('state')
    if (state == '2' or state == '4') and tonumber(get('purge')) <= now then
        forget()
        state = false
    elseif state == '2' and tonumber(get('due')) <= now then
        redis.call('HSET', record, 'state', '4', 'due', get('purge'))
        is.due = get('purge')
        redis.call('DEL', answer)
        state = '4'
    end
end

local function forget_old_steps()
    if state == '1' or state == '3' then return end
    local names = redis.call('HKEYS', steps)
    stepless = #names == 0
    for _, field in ipairs(names) do
        if string.sub(field, 1, 2) == 't:' and tonumber(redis.call('HGET', steps, field)) <= now then
            redis.call('HDEL', steps, field, 'r:' .. string.sub(field, 3))
        end
    end
end

local function holds(token) return state == '1' and get('token') == token end

local function next_token()
    return whole(math.max(math.floor(now * 1000000), tonumber(get('token') or get('last') or '0') + 1))
end

-- The columns of a record (filled in from Python), and the time.
local columns, answer_at = {{columns}}, {answer_at}
local function found()
    if not state then return false end
    local row = redis.call('HMGET', record, unpack(columns))
    row[answer_at] = redis.call('GET', answer)
    row[#columns + 1] = text(now)
    return row
end

local function grant(attempt, owner, fingerprint, lease, remembered)
    local token = next_token()
    -- First what takes memory: a full server refuses it here, before anything was done.
    redis.call('HSET', record, 'state', '1', 'token', token, 'owner', owner, 'attempt', attempt,
        'fingerprint', fingerprint, 'lease', text(now + tonumber(lease)))
    if get('token') or get('last') then
        redis.call('HDEL', record, 'due', 'purge', 'reason', 'last', 'keep', 'asked',
            'stepped')
        redis.call('PERSIST', record)
        redis.call('DEL', answer, request)
    end
    if remembered ~= '' then
        redis.call('SET', request, string.sub(remembered, 2))
        redis.call('HSET', record, 'asked', '1')
    end
    if not stepless then
        redis.call('HSET', record, 'stepped', '1')
        redis.call('PERSIST', steps)
    end
    return {token, attempt}
end

local function write_answer(body, expires, tombstone)
    local due = now + tonumber(expires)
    local purge = due + tonumber(tombstone)
    redis.call('HSET', record, 'state', '2', 'due', text(due), 'purge', text(purge))
    if state == '3' then redis.call('HDEL', record, 'reason') end
    redis.call('SET', answer, body, 'PX', milliseconds(tonumber(expires)))
    redis.call('PEXPIRE', record, milliseconds(tonumber(expires) + tonumber(tombstone)))
    if get('asked') then redis.call('DEL', request) end
    if get('stepped') then redis.call('PEXPIRE', steps, milliseconds(tonumber(expires))) end
end
