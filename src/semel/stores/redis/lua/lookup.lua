local function command()
    return found()
end
