-- `remembered`: '' or '=' and its bytes
local function command(owner, fingerprint, lease, remembered)
    if state then return found() end
    forget_old_steps()
    return grant('1', owner, fingerprint, lease, remembered)
end
