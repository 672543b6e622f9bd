-- The queue of a fleet: one script, so that each step is whole or not at all.
-- KEYS[1] is the prefix (with a hash tag, so that all keys are in one slot); ARGV[1] is the step.
-- Times are the server's own, in milliseconds. Keys below the prefix:
--   task:ID    hash: project group score body tries max fence state worker flag
--   ready:P    zset of a project's waiting tasks, by priority and order
--   turn       zset of projects that have waiting tasks, by virtual time;  vt: hash, where they stood
--   leased     zset of running tasks by deadline;   delayed: zset of waiting ones by when they may begin
--   inflight   hash of counts, "p:PROJECT" and "g:GROUP";  limit, weight: hashes of the same names
--   halted     set of projects, or "*";  dead: list of tasks that were tried too often;  seq, fence: counters
local prefix, step = KEYS[1], ARGV[1]
local function key(name) return prefix .. ':' .. name end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function first_turn()
  local first = redis.call('ZRANGE', key('turn'), 0, 0, 'WITHSCORES')
  return tonumber(first[2] or 0)
end

local function wait(id)
  local task = redis.call('HMGET', key('task:' .. id), 'project', 'score')
  redis.call('ZADD', key('ready:' .. task[1]), task[2], id)
  if not redis.call('ZSCORE', key('turn'), task[1]) then
    local stood = tonumber(redis.call('HGET', key('vt'), task[1]) or 0)
    redis.call('ZADD', key('turn'), math.max(stood, first_turn()), task[1])
  end
end

local function count(id, by)
  local task = redis.call('HMGET', key('task:' .. id), 'project', 'group')
  redis.call('HINCRBY', key('inflight'), 'p:' .. task[1], by)
  if task[2] ~= '' then redis.call('HINCRBY', key('inflight'), 'g:' .. task[2], by) end
end

-- A leased task comes back: to wait, or to the dead after its last try.
local function come_back(id, delay)
  count(id, -1)
  redis.call('ZREM', key('leased'), id)
  local task = key('task:' .. id)
  local tried = redis.call('HINCRBY', task, 'tries', 1)
  redis.call('HSET', task, 'fence', 0, 'worker', '')
  if redis.call('HGET', task, 'flag') == 'cancel' then
    redis.call('HSET', task, 'state', 'cancelled')
    return 'cancelled'
  end
  redis.call('HSET', task, 'flag', '')
  if tried >= tonumber(redis.call('HGET', task, 'max')) then
    redis.call('HSET', task, 'state', 'dead')
    redis.call('RPUSH', key('dead'), id)
    return 'dead'
  end
  redis.call('HSET', task, 'state', 'waiting')
  if delay > 0 then redis.call('ZADD', key('delayed'), now + delay, id) else wait(id) end
  return 'waiting'
end

local function room(name)
  local limit = redis.call('HGET', key('limit'), name)
  return not limit or tonumber(redis.call('HGET', key('inflight'), name) or 0) < tonumber(limit)
end

local function halted(project)
  return redis.call('SISMEMBER', key('halted'), '*') == 1 or redis.call('SISMEMBER', key('halted'), project) == 1
end

-- Whether the caller still holds the task. A fence is used once.
local function holds(id, fence)
  return fence ~= '0' and redis.call('HGET', key('task:' .. id), 'fence') == fence
end

if step == 'submit' then
  local id, project, group, priority, most, body = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]
  if redis.call('EXISTS', key('task:' .. id)) == 1 then return 0 end
  local score = redis.call('INCR', key('seq')) - priority * 1e12
  redis.call('HSET', key('task:' .. id), 'project', project, 'group', group, 'score', string.format('%.0f', score),
    'body', body, 'tries', 0, 'max', most, 'fence', 0, 'state', 'waiting', 'worker', '', 'flag', '')
  wait(id)
  return 1
end

if step == 'lease' then
  local worker, ttl = ARGV[2], tonumber(ARGV[3])
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('leased'), '-inf', now, 'LIMIT', 0, 64)) do come_back(id, 0) end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('delayed'), '-inf', now, 'LIMIT', 0, 64)) do
    redis.call('ZREM', key('delayed'), id)
    wait(id)
  end
  for _, project in ipairs(redis.call('ZRANGE', key('turn'), 0, 255)) do
    if not halted(project) and room('p:' .. project) then
      for _, id in ipairs(redis.call('ZRANGE', key('ready:' .. project), 0, 63)) do
        local task = redis.call('HMGET', key('task:' .. id), 'group', 'body')
        if task[1] == '' or room('g:' .. task[1]) then
          local fence = redis.call('INCR', key('fence'))
          redis.call('ZREM', key('ready:' .. project), id)
          redis.call('HSET', key('task:' .. id), 'fence', fence, 'state', 'leased', 'worker', worker)
          redis.call('ZADD', key('leased'), now + ttl, id)
          count(id, 1)
          local weight = tonumber(redis.call('HGET', key('weight'), project) or 1)
          local stands = redis.call('ZINCRBY', key('turn'), 1 / weight, project)
          redis.call('HSET', key('vt'), project, stands)
          if redis.call('EXISTS', key('ready:' .. project)) == 0 then redis.call('ZREM', key('turn'), project) end
          return { id, fence, task[2] }
        end
      end
    end
  end
  return {}
end

if step == 'renew' then
  local id, fence, ttl = ARGV[2], ARGV[3], tonumber(ARGV[4])
  if not holds(id, fence) then return 'lost' end
  local task = redis.call('HMGET', key('task:' .. id), 'project', 'flag')
  if halted(task[1]) then return 'halt' end
  if task[2] ~= '' then return task[2] end
  redis.call('ZADD', key('leased'), now + ttl, id)
  return 'held'
end

if step == 'finish' then
  local id, fence, state = ARGV[2], ARGV[3], ARGV[4]
  if not holds(id, fence) then return 0 end
  count(id, -1)
  redis.call('ZREM', key('leased'), id)
  redis.call('HSET', key('task:' .. id), 'state', state, 'fence', 0)
  return 1
end

if step == 'give_back' then
  local id, fence, delay = ARGV[2], ARGV[3], tonumber(ARGV[4])
  if not holds(id, fence) then return 'lost' end
  return come_back(id, delay)
end

if step == 'flag' then  -- `cancel` or `preempt`: told to the worker when it renews
  local id, flag = ARGV[2], ARGV[3]
  local task = key('task:' .. id)
  local state = redis.call('HGET', task, 'state')
  if state == 'leased' then
    redis.call('HSET', task, 'flag', flag)
    return 'told'
  end
  if state ~= 'waiting' or flag ~= 'cancel' then return 'no' end
  local project = redis.call('HGET', task, 'project')
  redis.call('ZREM', key('ready:' .. project), id)
  redis.call('ZREM', key('delayed'), id)
  if redis.call('EXISTS', key('ready:' .. project)) == 0 then redis.call('ZREM', key('turn'), project) end
  redis.call('HSET', task, 'state', 'cancelled')
  return 'cancelled'
end

if step == 'forget' then  -- what is over, once Home has heard of it
  local task = key('task:' .. ARGV[2])
  local state = redis.call('HGET', task, 'state')
  if state == 'waiting' or state == 'leased' then return 0 end
  redis.call('LREM', key('dead'), 0, ARGV[2])
  return redis.call('DEL', task)
end

return redis.error_reply('no such step')
