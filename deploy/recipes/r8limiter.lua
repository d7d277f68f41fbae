-- Asks r8limiter whether a request may pass; see haproxy.cfg.
local gateway, down, token = os.getenv("R8LIMITER"), os.getenv("R8LIMITER_DOWN"), os.getenv("R8LIMITER_TOKEN")

-- Fields that only this script sends, and those of the client's connection: what a
-- client sends under these names never reaches r8limiter.
local own = {}
for _, name in ipairs({
  "host", "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
  "content-length", "expect", "http2-settings",
  "x-forwarded-method", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-uri", "x-forwarded-for",
  "x-original-method", "x-original-uri", "x-original-url", "x-r8limiter-token",
}) do
  own[name] = true
end

-- values makes a list of what HAProxy counts from 0.
local function values(field)
  local list = {}
  for i = 0, #field do
    list[#list + 1] = field[i]
  end
  return list
end

local function first(headers, name)
  local field = headers and headers[name]
  return field and (field[0] or field[1])
end

local function describe(txn)
  local headers = {}
  for name, field in pairs(txn.http:req_get_headers()) do
    if not own[name] then
      headers[name] = values(field)
    end
  end
  headers["x-forwarded-method"] = { txn.f:method() }
  headers["x-forwarded-uri"] = { txn.f:pathq() }
  headers["x-forwarded-host"] = { txn.f:req_hdr("host") }
  headers["x-forwarded-proto"] = { txn.f:ssl_fc() == 1 and "https" or "http" }
  headers["x-forwarded-for"] = { txn.f:src() }
  if token then
    headers["x-r8limiter-token"] = { token }
  end
  return headers
end

-- isAnswer tells r8limiter's answers from those that HAProxy makes up itself.
local function isAnswer(res)
  local kind = res and first(res.headers, "content-type") or ""
  return kind == "application/json" or kind == "application/problem+json"
end

local passed = {
  "retry-after", "cache-control", "content-type", "www-authenticate", "allow",
  "ratelimit-policy", "ratelimit", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset",
}

local function refuse(txn, status, headers, body)
  local reply = txn:reply({ status = status, body = body })
  for _, name in ipairs(passed) do
    local value = first(headers, name)
    if value then
      reply:add_header(name, value)
    end
  end
  txn:done(reply)
end

-- unavailable answers for a gateway that has nothing to say to the client.
local function unavailable(txn)
  refuse(txn, 503, { ["retry-after"] = { "1" }, ["content-type"] = { "application/problem+json" } },
    '{"type":"about:blank","title":"Service Unavailable","status":503}')
end

core.register_action("r8limiter", { "http-req" }, function(txn)
  -- The status of a refusal is in a field then, unless what it refuses is this script: a
  -- wrong token is none of the client's business. What it can't read at all has its own.
  local res = core.httpclient():get({ url = gateway .. "/check?deny_status=403", headers = describe(txn), timeout = 1000 })
  if not isAnswer(res) then
    if down ~= "open" then
      unavailable(txn)
    end
    return
  end
  if res.status ~= 200 then
    local told = first(res.headers, "x-r8limiter-status")
    if told or res.status ~= 403 then
      refuse(txn, tonumber(told) or res.status, res.headers, res.body)
    else
      unavailable(txn)
    end
    return
  end
  local policy, ratelimit = first(res.headers, "ratelimit-policy"), first(res.headers, "ratelimit")
  if policy and ratelimit then
    txn:set_var("txn.r8_policy", policy)
    txn:set_var("txn.r8_ratelimit", ratelimit)
  end
end)
