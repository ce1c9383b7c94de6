-- Carries out the operations of one process on the sequences in this Redis, all of them at once.
--
-- ARGV: prefix of all keys, time to live in ms, sequences at most, bytes at most, and the operations, one after the other.
-- Returns what each operation came to, the sequences that were ended on the way (owner, reason, ...), and the tickets that
-- are first in a queue now.
--
--   state:KEY    hash: block, owner (model/version), bytes, ticket (that of the last commit)
--   turns:KEY    list of tickets, the first one has the sequence
--   lease:TICKET exists until the time of its request is over
--   used         sorted set of KEY by the time of its last commit; count, bytes: totals by owner, and of all under ''
--   used:HOLDER  the same of the sequences of one holder; held:count, held:bytes: sorted sets of HOLDER by their totals

local prefix, ttl_ms, max_count, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local USED, COUNT, BYTES = prefix .. 'used', prefix .. 'count', prefix .. 'bytes'
local HELD_COUNT, HELD_BYTES = prefix .. 'held:count', prefix .. 'held:bytes'
local results, ended, first = {}, {}, {}
local place = 5

local function take()
  place = place + 1
  return ARGV[place - 1]
end

local function take_keys()
  local keys = {}
  for number = 1, tonumber(take()) do keys[number] = take() end
  return keys
end

local function state_of(key) return prefix .. 'state:' .. key end
local function turns_of(key) return prefix .. 'turns:' .. key end
local function lease_of(ticket) return prefix .. 'lease:' .. ticket end

local function used_by(holder) return USED .. ':' .. holder end

-- KEY is model/holder\0id, or model/id where requests need no API key.
local function holder_of(key)
  local last = string.find(key, '\0', 1, true)
  return last and string.sub(key, string.find(key, '/', 1, true) + 1, last - 1) or ''
end

local function add(owner, sign, bytes)
  for _, field in ipairs({owner, ''}) do
    redis.call('HINCRBY', COUNT, field, sign)
    redis.call('HINCRBY', BYTES, field, sign * bytes)
  end
end

local function hold(holder, sign, bytes)
  local count = tonumber(redis.call('ZINCRBY', HELD_COUNT, sign, holder))
  redis.call('ZINCRBY', HELD_BYTES, sign * bytes, holder)
  if count <= 0 then
    redis.call('ZREM', HELD_COUNT, holder)
    redis.call('ZREM', HELD_BYTES, holder)
  end
end

local function forget(key)
  local about = redis.call('HMGET', state_of(key), 'owner', 'bytes')
  local holder = holder_of(key)
  redis.call('ZREM', USED, key)
  -- What a server of an older version has kept is counted for no holder.
  if redis.call('ZREM', used_by(holder), key) == 1 then hold(holder, -1, tonumber(about[2] or 0)) end
  if about[1] then
    redis.call('DEL', state_of(key))
    add(about[1], -1, tonumber(about[2]))
  end
  return about[1]
end

local function evict(key, reason)
  local owner = forget(key)
  if owner then
    table.insert(ended, owner)
    table.insert(ended, reason)
  end
end

-- The ticket that has the sequence; those whose request ended without a word are dropped.
local function find_first(key)
  while true do
    local ticket = redis.call('LINDEX', turns_of(key), 0)
    if not ticket or redis.call('EXISTS', lease_of(ticket)) == 1 then return ticket end
    redis.call('LPOP', turns_of(key))
  end
end

local function evict_if_idle(key)
  local used = redis.call('ZSCORE', USED, key)
  if used and tonumber(used) + ttl_ms <= now and not find_first(key) then evict(key, 'idle') end
end

local function is_granted(ticket, keys)
  for _, key in ipairs(keys) do
    if find_first(key) ~= ticket then return false end
  end
  return true
end

local function leave(ticket, keys)
  for _, key in ipairs(keys) do
    redis.call('LREM', turns_of(key), 1, ticket)
    local following = find_first(key)
    if following then table.insert(first, following) end
  end
  redis.call('DEL', lease_of(ticket))
end

local function read_granted(keys)
  local found = {1}
  for number, key in ipairs(keys) do found[number + 1] = redis.call('HGET', state_of(key), 'block') end
  return found
end

local function read(ticket, keys)
  if not is_granted(ticket, keys) then return {0} end
  return read_granted(keys)
end

-- The totals of holders by which too much is kept; nil: there is room.
local function find_excess()
  if tonumber(redis.call('HGET', BYTES, '') or 0) > max_bytes then return HELD_BYTES end
  if tonumber(redis.call('HGET', COUNT, '') or 0) > max_count then return HELD_COUNT end
end

-- The sequence that ends next: of those who hold most, the one that was not used for longest, and that no request has.
local function find_victim(excess)
  local rank = 0
  while true do
    local holder = redis.call('ZREVRANGE', excess, rank, rank)[1]
    local used = holder and used_by(holder) or USED
    local num_busy = 0
    while true do
      local key = redis.call('ZRANGE', used, num_busy, num_busy)[1]
      if not key then break end
      if not find_first(key) then return key end
      num_busy = num_busy + 1
    end
    if not holder then return nil end
    rank = rank + 1
  end
end

local function evict_least_recent()
  local excess = find_excess()
  while excess do
    local key = find_victim(excess)
    if not key then return end
    evict(key, 'lru')
    excess = find_excess()
  end
end

local function commit(ticket, keys, changes)
  if not is_granted(ticket, keys) then
    -- A commit that is repeated because its answer was lost.
    for number, key in ipairs(keys) do
      local last = redis.call('HGET', state_of(key), 'ticket')
      if last ~= ticket and (last or changes[number].owner ~= '') then return 0 end
    end
    return 1
  end
  for number, key in ipairs(keys) do
    local change = changes[number]
    local before = redis.call('HMGET', state_of(key), 'owner', 'bytes')
    if change.owner ~= '' and before[1] == change.owner and tonumber(before[2]) == #change.block then
      -- The next step of a sequence, as nearly all are: the totals stay.
      redis.call('HSET', state_of(key), 'block', change.block, 'ticket', ticket)
      redis.call('ZADD', USED, now, key)
      -- What a server of an older version has kept was counted for no holder until now.
      if redis.call('ZADD', used_by(holder_of(key)), now, key) == 1 then hold(holder_of(key), 1, #change.block) end
    else
      forget(key)
      if change.owner ~= '' then
        redis.call('HSET', state_of(key), 'block', change.block, 'owner', change.owner, 'bytes', #change.block, 'ticket', ticket)
        redis.call('ZADD', USED, now, key)
        redis.call('ZADD', used_by(holder_of(key)), now, key)
        hold(holder_of(key), 1, #change.block)
        add(change.owner, 1, #change.block)
      end
    end
  end
  evict_least_recent()
  leave(ticket, keys)
  return 1
end

local operations = {}

function operations.enqueue()
  local ticket, lease_ms, keys = take(), tonumber(take()), take_keys()
  redis.call('SET', lease_of(ticket), '', 'PX', lease_ms)
  local is_first = true
  for _, key in ipairs(keys) do
    evict_if_idle(key)
    local is_alone = redis.call('RPUSH', turns_of(key), ticket) == 1
    is_first = is_first and is_alone
    if is_alone or redis.call('PTTL', turns_of(key)) < lease_ms then redis.call('PEXPIRE', turns_of(key), lease_ms) end
  end
  if is_first then return read_granted(keys) end
  return read(ticket, keys)
end

function operations.read()
  local ticket, keys = take(), take_keys()
  if redis.call('EXISTS', lease_of(ticket)) == 0 then return {-1} end
  return read(ticket, keys)
end

function operations.release()
  local ticket, keys = take(), take_keys()
  leave(ticket, keys)
  return 1
end

function operations.commit()
  local ticket, keys, changes = take(), take_keys(), {}
  for number = 1, #keys do changes[number] = {owner = take(), block = take()} end
  return commit(ticket, keys, changes)
end

function operations.find()
  local key = take()
  evict_if_idle(key)
  local block = redis.call('HGET', state_of(key), 'block')
  if not block then return {} end
  return {block, now - tonumber(redis.call('ZSCORE', USED, key) or now), find_first(key) and 1 or 0}
end

function operations.expire()
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', USED, '-inf', now - ttl_ms, 'LIMIT', 0, 1000)) do evict_if_idle(key) end
  return {redis.call('HGETALL', COUNT), redis.call('HGETALL', BYTES)}
end

while place <= #ARGV do
  table.insert(results, operations[take()]())
end
return {results, ended, first}
