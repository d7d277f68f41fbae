#!lua
-- Decisions, one after another in one atomic step: each spends its cost from every bucket of its
-- limits or from none. limiter/bucket.go is the reference; every figure here is equal.
--
-- KEYS   for each decision its buckets, one for each limit, and then, if it has one, its
--        idempotency record. A bucket may be named twice in a decision: it is charged once, for all
--        of a decision is read before its first write. Decisions see what those before them wrote.
-- ARGV   [1] one big-endian packed string, for each decision:
--          I1 flags, I1 number of limits, I4 cost in tokens,
--          flag 1 (it has a record): I6 time to live of the record in ms
--          flag 2 (owed): spend the cost in any case, down to empty buckets
--          flag 4 (refund): the cost goes back
--          flag 8 (lease): I5 lease, I4 tokens that its holder still has at most, I4 tokens wanted,
--                  I2 share of what is left that it may have, in thousandths, I4 time to live in ms
--          flag 16 (return): I5 lease; the cost is what its holder did not spend, and the lease ends
--          flag 32 (peek): only say what the record says; nothing is spent or remembered
--          then for each limit: I1 shadow (1) or not (0), I4 capacity in tokens, I4 n, I7 p
--        The bucket gains n tokens every p microseconds: n < 2^27, p < 2^52, n <= p.
-- Returns one big-endian packed string, for each decision:
--          c1 A(llowed), D(enied), R(eplayed), M(ismatch: the record holds another cost),
--          X (a key holds something that is no bucket); then, except after M and X,
--          flag 8: I4 tokens that the lease got, and
--          for each limit: I1 denied (1) or not, and 2 more if leases hold tokens; I4 debt in tokens; i8 progress.
--        Debt - progress/p tokens are missing now, after this decision.
--
-- Bucket: '>I4I7' debt in whole tokens, and the moment in microseconds at which that was exact;
-- '>I4' frac only if that moment is frac/n microseconds later; and for each lease '>I5I4I6': lease,
-- tokens that its holder has at most, and when it ends, in ms. Its time to live is the time
-- to full, in ms rounded up (a ms more where that takes numbers above 2^53), counted from the end of its last
-- lease: no key, full bucket. A rate that became slower lengthens it with the next charge or refusal; a
-- bucket that nobody asks lives for the time of the old rate. Record: the cost in decimal.
--
-- A lease's tokens are debt from the moment it is given, before any is spent. Until it ends, the
-- debt does not refill below what leases hold, whenever that is looked at: bucket and leases together
-- never hold more than the capacity, so no window admits more than capacity and refill, whoever spends.
-- A lease's id is used for one run of renewals: never after a return, nor after an answer that was lost.
--
-- Every number is a double that holds an integer below 2^53, so it is exact (microseconds until the
-- year 2255). All is checked before the first write; with the header `#!lua` (Redis 7.0 or later)
-- Redis also refuses a script that could not write (OOM, replica, disk) before it starts, not in
-- the middle.
local unpack, pack, floor, ceil, sub = struct.unpack, struct.pack, math.floor, math.ceil, string.sub
local call, pcall = redis.call, redis.pcall
local TWO26, TWO53 = 67108864, 9007199254740992
local MAX_AHEAD = 60000000 -- us that a bucket may lie in the future before it is brought back
local MAX_LEASES = 16 -- of a bucket
local MAX_TERM = 20000 -- ms that a lease lasts at most
local GRACE = 500 -- a lease counts a 500th of its life and 2 ms longer than its holder believes: clocks drift

-- floor((r*n - frac) / p) and what is left over, for 0 <= r < p. r*n may need
-- 79 bits: then the quotient is estimated, off by one at most, and the
-- remainder is computed exactly in halves of 26 bits.
local function divide(r, n, frac, p)
  local x = r * n
  if x < TWO53 then
    local left = (x - frac) % p
    return (x - frac - left) / p, left
  end
  local q = floor(x / p)
  local rh, qh, ph = floor(r / TWO26), floor(q / TWO26), floor(p / TWO26)
  local rl, ql, pl = r - rh * TWO26, q - qh * TWO26, p - ph * TWO26
  local high = rh * n - qh * pl - ql * ph - qh * ph * TWO26
  local left = high * TWO26 + (rl * n - ql * pl) - frac
  while left < 0 do q, left = q - 1, left + p end
  while left >= p do q, left = q + 1, left - p end
  return q, left
end

-- What is left of a debt after so many microseconds, and the progress.
local function refilled(debt, elapsed, frac, n, p)
  if elapsed <= 0 then return debt, elapsed * n - frac end
  local whole = floor(elapsed / p)
  local more, progress = divide(elapsed - whole * p, n, frac, p)
  debt = debt - whole * n - more
  if debt <= 0 then return 0, 0 end
  return debt, progress
end

-- The bucket's debt and progress now, whether its moment had to be brought back to now (so that it
-- is to be written), and its leases. No debt where the key holds no bucket.
local function level(value, now, n, p)
  if not value then return 0, 0, false, '' end
  local size = type(value) == 'string' and #value or 0
  local form, leases = size % 15, ''
  if size < 11 or (form ~= 0 and form ~= 11) then return nil end
  local debt, at = unpack('>I4I7', value)
  local frac = form == 0 and unpack('>I4', value, 12) or 0
  if size > 15 then leases = sub(value, form == 0 and 16 or 12) end
  if frac >= n then at, frac = at + 1, 0 end -- the rate was changed
  if at - now > MAX_AHEAD then return debt, 0, true, leases end
  local progress
  debt, progress = refilled(debt, now - at, frac, n, p)
  return debt, progress, false, leases
end

-- How the leases bound a debt. While a lease lasts, the debt is not below what it and those that
-- end later hold; from then on, that refills. Returns the debt and progress, the tokens that are
-- held now, by the one of that id, the leases but for it that last, and when the last ends.
local function bounded(debt, progress, leases, id, now, ms, n, p)
  local sum, others, own, last, size = 0, '', 0, 0, #leases
  for i = 1, size, 15 do
    local each, tokens, ends = unpack('>I5I4I6', leases, i)
    if ends > ms + MAX_TERM then -- the clock went back
    elseif ends > ms then
      sum = sum + tokens
      if ends > last then last = ends end
      if each == id then own = tokens else others = others .. sub(leases, i, i + 14) end
    else
      local held = 0
      for k = 1, size, 15 do
        local _, more, later = unpack('>I5I4I6', leases, k)
        if later >= ends and later <= ms + MAX_TERM then held = held + more end
      end
      local least, at = refilled(held, now - ends * 1000, 0, n, p)
      if debt < least or debt == least and progress > at then debt, progress = least, at end
    end
  end
  if debt < sum or debt == sum and progress > 0 then debt, progress = sum, 0 end
  return debt, progress, sum, own, others, last
end

-- The time to full in ms, rounded up.
local function life(debt, progress, n, p)
  local missing = debt * p - progress
  local ms = ceil(missing / n / 1000)
  if missing >= TWO53 then ms = ms + 1 end -- it was rounded: better a millisecond late than early
  return math.min(ms, 9007199254740)
end

-- keep is how long the last lease lasts, in ms: all of the debt may be its, and refill only then.
local function write(key, now, debt, progress, n, p, leases, keep)
  local back = ceil(progress / n) -- so long ago, progress was 0
  local frac = back * n - progress
  local value = pack('>I4I7', debt, now - back)
  if frac > 0 then value = value .. pack('>I4', frac) end
  if debt <= 0 and leases == '' then call('UNLINK', key) return end
  call('SET', key, value .. leases, 'PX', math.max(life(debt, progress, n, p) + keep, 1))
end

local function has(flags, flag) return floor(flags / flag) % 2 == 1 end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ms = floor(now / 1000)
local params, size, position, first = ARGV[1], #ARGV[1], 1, 1
local answers, shadows, capacities, ns, ps = {}, {}, {}, {}, {}
local refused, debts, progresses, dirty, leases, others, keeps, out = {}, {}, {}, {}, {}, {}, {}, {}

while position <= size do
  local flags, limits, cost, lease, held, want, share, ttl
  local status, record, recordTTL = 'A', nil, 0
  flags, limits, cost, position = unpack('>BBI4', params, position)
  local key = first - 1
  first = first + limits
  local owed, refund, leased, returned = false, false, false, false
  if flags > 0 then
    owed, refund, leased, returned = has(flags, 2), has(flags, 4), has(flags, 8), has(flags, 16)
    if has(flags, 1) then
      recordTTL, position = unpack('>I6', params, position)
      record = KEYS[first]
      first = first + 1
      local known = pcall('GET', record)
      if type(known) == 'table' then status = 'X'
      elseif known and tonumber(known) ~= cost then status = 'M'
      elseif known then status = 'R' end
    end
    if has(flags, 32) and status == 'A' then cost, record = 0, nil end
    if leased then lease, held, want, share, ttl, position = unpack('>I5I4I4I2I4', params, position)
    elseif returned then lease, position = unpack('>I5', params, position) end
  end

  for i = 1, limits do
    shadows[i], capacities[i], ns[i], ps[i], position = unpack('>BI4I4I7', params, position)
    local debt, progress, sum = 0, 0, 0
    debt, progress, dirty[i], leases[i] = level(pcall('GET', KEYS[key + i]), now, ns[i], ps[i])
    keeps[i], out[i] = 0, 0
    if not debt then
      status, debt, progress, leases[i] = 'X', 0, 0, ''
    elseif leases[i] ~= '' or lease then
      local own, last
      debt, progress, sum, own, others[i], last = bounded(debt, progress, leases[i], lease, now, ms, ns[i], ps[i])
      if sum == 0 then leases[i] = '' else keeps[i], out[i] = last - ms, 2 end
      if returned then
        debt, leases[i] = debt - math.min(cost, own), others[i]
        if leases[i] == '' then keeps[i] = 0 end
      end
    end
    if refund then
      debt = math.max(debt - cost, sum)
      if debt == sum then progress = math.min(progress, 0) end
    end
    debts[i], progresses[i] = debt, progress
    refused[i] = status ~= 'R' and cost > 0 and not owed and not refund and not returned and debt + cost > capacities[i]
    if refused[i] and shadows[i] == 0 and status == 'A' then status = 'D' end
  end

  local answer = status
  if status == 'M' or status == 'X' then limits = 0 end
  if leased and limits > 0 then
    local got = 0
    if status == 'A' then
      got = want
      for i = 1, limits do
        got = math.min(got, floor((capacities[i] - debts[i] - cost + held) * share / 1000) - held)
        if #others[i] >= MAX_LEASES * 15 then got = 0 end
      end
      if got <= cost then got = 0 end
    end
    if got > 0 then
      local term = ttl + 2 + ceil(ttl / GRACE)
      for i = 1, limits do
        debts[i], dirty[i] = debts[i] + got, true
        leases[i] = others[i] .. pack('>I5I4I6', lease, held + got, ms + term)
        keeps[i] = math.max(keeps[i], term)
      end
    end
    answer = answer .. pack('>I4', got)
  end
  for i = 1, limits do
    local charge = status == 'A' and cost > 0 and not refused[i]
    if charge and not refund and not returned then
      debts[i] = owed and math.max(debts[i], math.min(debts[i] + cost, capacities[i])) or debts[i] + cost
    end
    if charge or dirty[i] then
      write(KEYS[key + i], now, debts[i], progresses[i], ns[i], ps[i], leases[i], keeps[i])
    elseif refused[i] then
      call('PEXPIRE', KEYS[key + i], life(debts[i], progresses[i], ns[i], ps[i]) + keeps[i], 'GT')
    end
    answer = answer .. pack('>BI4i8', (refused[i] and 1 or 0) + out[i], debts[i], progresses[i])
  end
  if record and status == 'A' then call('SET', record, string.format('%.0f', cost), 'PX', recordTTL) end
  answers[#answers + 1] = answer
end
return table.concat(answers)
