#!/usr/bin/env bash
# Tests metrics, rules, runbook and dashboard against what really runs: promtool
# checks the files and /metrics; then Prometheus scrapes two loaded gateways, one
# with TLS on Redis and one in memory, and every query of the dashboard and every recording
# rule must return a number, every alert must be about series that exist.
#
# Needs go, curl, jq, redis-server and Debian's or Ubuntu's packages (prometheus is
# unpacked into the cache of tools, not installed). R8LIMITER_BIN names a gateway
# that is built already. Takes about a minute; listens on loopback only.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=deploy/test/tools.sh
source deploy/test/tools.sh

rules=deploy/prometheus/rules.yaml
dashboard=deploy/grafana/r8limiter.json
pids=()
dir=$(mktemp -d)

cleanup() {
  local status=$? pid
  if [ "$status" != 0 ]; then
    tail -n 5 "$dir"/*.log >&2 || true
  fi
  for pid in "${pids[@]}"; do
    # A stopped process takes no other signal.
    kill -CONT "$pid" 2>/dev/null || true
    kill "$pid" 2>/dev/null || true
  done
  # SIGTERM makes a gateway wait for load balancers: a second signal ends it.
  for pid in "${pids[@]}"; do
    kill -INT "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  rm -rf "$dir"
}
trap cleanup EXIT

# The package would start a service where it is installed: only unpack it.
unpack_prometheus() {
  prometheus=$tools/prometheus/usr/bin
  [ -x "$prometheus/promtool" ] && [ -x "$prometheus/prometheus" ] && return
  echo "unpacking Debian's prometheus" >&2
  local sudo=
  [ "$(id -u)" = 0 ] || sudo=sudo
  mkdir "$dir/package"
  (
    cd "$dir/package"
    apt-get download -q prometheus || { $sudo apt-get update -q && apt-get download -q prometheus; }
    dpkg -x prometheus_*.deb unpacked
  ) >&2
  rm -rf "$tools/prometheus"
  mv "$dir/package/unpacked" "$tools/prometheus"
}

# until_ SECONDS WHAT COMMAND...: polls until the command succeeds.
until_() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || fail "it never came to be that $what"
    sleep 0.1
  done
}

# --- files ---------------------------------------------------------------------

check_files() {
  "$prometheus/promtool" check rules "$rules"
  "$prometheus/promtool" check config deploy/prometheus/prometheus.yml
  "$prometheus/promtool" test rules deploy/prometheus/rules_test.yaml
  check_alerts
  check_dashboard
}

# Each alert has a section of the runbook that it names, a case that fires and one
# that does not. rules_test.yaml has `exp_alerts` two lines after `alertname`.
check_alerts() {
  local alert anchor cases
  # shellcheck disable=SC2013 # names have no spaces
  for alert in $(sed -n 's/^ *- alert: \([A-Za-z0-9]*\).*/\1/p' "$rules"); do
    anchor=deploy/prometheus/RUNBOOK.md#${alert,,}
    grep -qx "## $alert" deploy/prometheus/RUNBOOK.md || fail "RUNBOOK.md has no section $alert"
    sed -n "/- alert: $alert\b/,/runbook:/p" "$rules" | grep -q "runbook: $anchor\$" || fail "$alert does not name $anchor"
    cases=$(grep -A 2 "alertname: $alert\$" deploy/prometheus/rules_test.yaml || true)
    grep -q 'exp_alerts:$' <<<"$cases" || fail "no test in which $alert fires"
    grep -q 'exp_alerts: \[\]$' <<<"$cases" || fail "no test in which $alert does not fire"
  done
  # shellcheck disable=SC2013 # names have no spaces
  for alert in $(sed -n 's/^## //p' deploy/prometheus/RUNBOOK.md); do
    grep -q -- "- alert: $alert\b" "$rules" || fail "RUNBOOK.md has a section for $alert, which is no alert"
  done
  for anchor in $(grep -o '](#[a-z0-9]*)' deploy/prometheus/RUNBOOK.md | tr -d ']()' | sort -u); do
    sed -n 's/^## /#/p' deploy/prometheus/RUNBOOK.md | tr '[:upper:]' '[:lower:]' | grep -qx "$anchor" || fail "RUNBOOK.md points to $anchor, which is not there"
  done
}

check_dashboard() {
  local wrong
  wrong=$(jq -r '
    def panel: "panel \"\(.title)\"";
    (if .uid != "r8limiter" then "uid is \(.uid)" else empty end),
    (if .schemaVersion < 38 then "schemaVersion is \(.schemaVersion)" else empty end),
    (.panels | group_by(.id)[] | select(length > 1) | "two panels have id \(.[0].id)"),
    (.panels | group_by([.gridPos.x, .gridPos.y])[] | select(length > 1) | "\(.[0] | panel) lies on another"),
    (.panels[] | select(.gridPos.x + .gridPos.w > 24) | "\(panel) is too wide"),
    (.panels[] | select(.type != "row") |
      (select((.title // "") == "" or (.description // "") == "") | "\(panel) lacks a title or a description"),
      (select((.targets // []) == []) | "\(panel) has no query"),
      (select([.datasource, .targets[].datasource] | all(.uid == "${datasource}") | not) | "\(panel) has a data source of its own"))
  ' "$dashboard")
  [ -z "$wrong" ] || fail "$dashboard: $wrong"
  local query
  while read -r query; do
    jq -e --arg query "$query" 'any(.panels[].targets[]?; .expr == $query)' "$dashboard" >/dev/null || fail "$dashboard lacks $query"
  done <<'QUERIES'
sum(rate(requests_total{result="allow"}[1m])) by (result)
active_keys
histogram_quantile(0.95, sum(rate(request_latency_seconds_bucket[5m])) by (le, endpoint))
QUERIES
}

# --- what runs -------------------------------------------------------------------

# start_gateway NAME: serves $dir/NAME.yaml and sets proxy and control to its addresses.
start_gateway() {
  "$gateway" -config "$dir/$1.yaml" 2>"$dir/$1.log" &
  pids+=($!)
  until_ 10 "gateway $1 serves" grep -q '"message":"serving"' "$dir/$1.log"
  proxy=$(jq -r 'select(.message == "serving").proxy' "$dir/$1.log")
  control=$(jq -r 'select(.message == "serving").control' "$dir/$1.log")
  until_ 10 "gateway $1 is ready" curl -fsS "http://$control/readyz"
}

# certify: a certificate that is due for renewal, in $dir/cert.pem and key.pem.
certify() {
  (cd "$dir" && go run "$(go env GOROOT)/src/crypto/tls/generate_cert.go" -host 127.0.0.1 -duration 240h 2>/dev/null)
}

# The gateway in memory is the upstream of the one on Redis: it mirrors, refuses
# /forbidden, and fails on /broken. Nobody listens on ports 1 and 2: half has a
# target that is ejected, gone has no other.
start_all() {
  redis-server --port 0 --unixsocket "$dir/redis.sock" --save '' --appendonly no --dir "$dir" >"$dir/redis-server.log" &
  redis=$!
  pids+=("$redis")
  cat >"$dir/memory.yaml" <<'YAML'
proxy:
  listen: "127.0.0.1:0"
  upstreams: {mirror: {targets: ["echo:"]}, nobody: {targets: ["http://127.0.0.1:1"]}}
  routes:
    - {name: forbidden, match: {path: /forbidden}, action: block}
    - {name: broken, match: {path: /broken}, action: bypass, upstream: nobody}
    - {name: rest, upstream: mirror}
limiter: {default: {capacity: 1000, refill_rate: 1000/s}}
admin: {listen: "127.0.0.1:0"}
log: {requests: denied}
YAML
  start_gateway memory
  memory=$control
  certify
  cat >"$dir/redis.yaml" <<YAML
proxy:
  listen: "127.0.0.1:0"
  tls: {certificates: [{cert_file: $dir/cert.pem, key_file: $dir/key.pem}]}
  limits: {connections_per_client: 5}
  upstreams:
    api: {targets: ["http://$proxy"]}
    half: {targets: ["http://$proxy", "http://127.0.0.1:1"]}
    gone: {targets: ["http://127.0.0.1:1", "http://127.0.0.1:2"], health_check: {interval: 200ms, unhealthy_after: 1}}
    nobody: {targets: ["http://127.0.0.1:1"]}
    nonsense: {targets: ["unix:$dir/redis.sock"]}
  routes:
    - {name: nobody, match: {path: /nobody}, upstream: nobody}
    - {name: nonsense, match: {path: /nonsense}, upstream: nonsense}
    - {name: half, match: {path: /half}, upstream: half}
    - {name: gone, match: {path: /gone}, upstream: gone}
    - {name: search, match: {path: /search}, user_id: ["{header.X-User-Id}", "{client_ip}"], upstream: api}
    - {name: open, match: {path: /open}, upstream: api}
    - {name: closed, match: {path: /closed}, upstream: api}
    - {name: items, user_id: ["{header.X-User-Id}", "{client_ip}"], upstream: api}
limiter:
  default: {capacity: 1000, refill_rate: 100/s}
  resources:
    search:
      limits:
        - {name: burst, capacity: 3, refill_rate: 1/s}
        - {name: next, shadow: true, capacity: 1, refill_rate: 1/m}
    items: {capacity: 1000, refill_rate: 10/m} # so slow that something is owed after an outage
    hot: {capacity: 10000, refill_rate: 1000/s, precision: leased}
    open: {capacity: 1000, refill_rate: 100/s, on_store_error: allow}
    closed: {capacity: 1000, refill_rate: 100/s, on_store_error: deny}
  redis: {url: "unix://$dir/redis.sock", timeout: 100ms}
admin: {listen: "127.0.0.1:0"}
log: {requests: denied}
YAML
  start_gateway redis
  shared=$control
  start_prometheus
}

# The shipped configuration, scraping these gateways every second.
start_prometheus() {
  sed -e 's/: 15s/: 1s/' -e "s/\"127.0.0.1:8000\"/\"$shared\", \"$memory\"/" deploy/prometheus/prometheus.yml >"$dir/prometheus.yml"
  grep -q "$shared" "$dir/prometheus.yml" || fail "prometheus.yml does not scrape 127.0.0.1:8000"
  cp "$rules" "$dir"
  local port
  port=$(shuf -i 20000-30000 -n 1)
  while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  api=http://127.0.0.1:$port/api/v1
  "$prometheus/prometheus" --config.file="$dir/prometheus.yml" --storage.tsdb.path="$dir/data" \
    --web.listen-address="127.0.0.1:$port" --log.level=warn 2>"$dir/prometheus.log" &
  pids+=($!)
  until_ 20 "Prometheus is ready" curl -fsS "http://127.0.0.1:$port/-/ready"
}

# send [OPTION...] URL: sends whatever the answer will be, and waits for it.
send() { curl -sS -k -o /dev/null --max-time 5 "$@"; }

# Some 1500 requests in 10 rounds, so that counters grow between scrapes, and so
# many for one user that a lease pays for most of them.
load() {
  local round
  for round in {1..10}; do
    send -H "X-User-Id: user$round" "https://$proxy/v1/items/[1-20]"
    send -H 'X-User-Id: greedy' "https://$proxy/search?[1-6]"
    send -X POST "http://$shared/allow?user_id=one&resource=hot#[1-100]"
    send "https://$proxy/{forbidden,broken,nobody,nonsense,broken,nobody,half,half,gone}"
    send -X POST "http://$shared/allow?user_id=user$round&resource=search&cost={1,2,3}"
    send -X POST "http://$memory/allow?user_id=user$round"
    sleep 0.5
  done
  # A Redis that stands still is one that answers too late. What is held of a lease
  # can't go back, on_store_error decides in its three ways, and is settled after.
  send -X POST "http://$shared/allow?user_id=one&resource=hot#[1-100]"
  kill -STOP "$redis"
  for round in {1..6}; do
    send "https://$proxy/{v1/items/,open?,closed?}[1-4]"
    sleep 0.5
  done
  # It is the upstream nonsense too: its clients leave, which takes a moment to be noticed.
  ! send --max-time 1 "https://$proxy/nonsense" 2>/dev/null || fail "a Redis that stands still answers"
  until_ 10 "a client has left" counts 'r8limiter_problems_total{status="499"}'
  kill -CONT "$redis"
  until_ 10 "the gateway asks Redis again" calm
  send "https://$proxy/v1/items/[1-4]"
  crowd
  # What is written over it is no certificate, what it was stays in force.
  echo nonsense >"$dir/cert.pem"
  send "https://$proxy/v1/items/[1-4]"
}

# crowd has clients refused: one that speaks no TLS, and more uploads at a time than
# connections_per_client; they go on until one was.
crowd() {
  local uploads=() pid hold
  ! send "http://$proxy/open" 2>/dev/null || fail "the listener with TLS answers HTTP"
  mkfifo "$dir/upload"
  exec {hold}<>"$dir/upload"
  for _ in {1..8}; do
    send --max-time 30 -X POST -T - "https://$proxy/open" <"$dir/upload" {hold}>&- 2>/dev/null &
    uploads+=($!)
  done
  until_ 20 "a client has too many connections" counts 'r8limiter_connections_refused_total{listener="proxy",reason="connections_per_client"}'
  exec {hold}>&-
  for pid in "${uploads[@]}"; do wait "$pid" || true; done
}

# counts SERIES: says whether that of the gateway on Redis is above 0.
counts() {
  curl -sS "http://$shared/metrics" >"$dir/counts.txt"
  awk -v series="$1" '$1 == series && $2 > 0 {found = 1} END {exit !found}' "$dir/counts.txt"
}

# calm says whether the gateway on Redis neither is degraded nor owes anything.
calm() {
  curl -sS "http://$shared/metrics" >"$dir/calm.txt"
  grep -qx 'r8limiter_store_degraded 0' "$dir/calm.txt" && grep -qx 'r8limiter_store_owed_buckets 0' "$dir/calm.txt"
}

# --- what Prometheus knows ---------------------------------------------------------

# numbers QUERY: how many samples the answer holds, without those that are no number.
numbers() {
  curl -sS -G --max-time 10 --data-urlencode "query=$1" "$api/query" |
    jq -er 'if .status == "success" then [.data.result[] | select(.value[1] != "NaN")] | length else error(.error) end'
}

holds() { [ "$(numbers "$1")" -gt 0 ]; }

# Every outcome that the load is there for, in a query each.
check_load() {
  local query
  while read -r query; do
    until_ 10 "Prometheus has $query" holds "$query"
  done <<'QUERIES'
min(count_over_time(requests_total[1m])) > 5
requests_total{result="deny"} > 0
r8limiter_decisions_total{route="search",limit="burst",outcome="deny"} > 0
r8limiter_decisions_total{route="search",limit="next",outcome="shadow_deny"} > 0
r8limiter_decisions_total{route="items",outcome="allow",reason="store_local"} > 0
r8limiter_decisions_total{route="open",outcome="allow",reason="store_allow"} > 0
r8limiter_decisions_total{route="closed",outcome="error",reason="store"} > 0
r8limiter_upstream_errors_total{upstream="nobody",kind="connect"} > 0
r8limiter_upstream_errors_total{upstream="nonsense",kind!="connect"} > 0
r8limiter_upstream_requests_total{upstream="api",code="2xx"} > 0
r8limiter_upstream_requests_total{upstream="api",code="4xx"} > 0
r8limiter_upstream_requests_total{upstream="api",code="5xx"} > 0
r8limiter_store_errors_total{kind="timeout"} > 0
r8limiter_store_errors_total{kind="unsent"} > 0
r8limiter_store_decisions_total{by="call"} > 0
r8limiter_store_decisions_total{by="denial"} > 0
r8limiter_store_decisions_total{by="lease"} > 0
r8limiter_lease_tokens_total{event="granted"} > 0
r8limiter_lease_tokens_total{event="lost"} > 0
max_over_time(r8limiter_store_degraded[2m]) > 0
max_over_time(r8limiter_store_breaker_open[2m]) > 0
r8limiter_store_breaker_opened_total > 0
max_over_time(r8limiter_store_owed_buckets[2m]) > 0
r8limiter_store_owed_tokens_settled_total > 0
r8limiter_store_condition{kind="persistence"} > 0
r8limiter_problems_total{status="503"} > 0
r8limiter_problems_total{status="499"} > 0
r8limiter_upstream_errors_total{upstream="gone",kind="unhealthy"} > 0
r8limiter_upstream_targets{upstream="half",state="ejected"} == 1
r8limiter_upstream_targets{upstream="gone",state="healthy"} == 0
r8limiter_upstream_retries_total{upstream="half"} > 0
r8limiter_connections_refused_total{reason="connections_per_client"} > 0
r8limiter_connections_refused_total{reason="handshake"} > 0
r8limiter_certificate_reload_successful{listener="proxy"} == 0
request_latency_seconds_count{endpoint="/allow"} > 0
QUERIES
}

check_metrics() {
  local address
  for address in "$shared" "$memory"; do
    curl -fsS "http://$address/metrics" >"$dir/metrics.txt"
    "$prometheus/promtool" check metrics <"$dir/metrics.txt" || fail "promtool finds fault with /metrics"
  done
}

# What Grafana would put in for its variables, but for the windows: they must fit a
# history of a minute.
# shellcheck disable=SC2016 # the variables are Grafana's
substituted() { sed -e 's/\$__rate_interval/1m/g' -e 's/\$job/r8limiter/g' -e 's/\$instance/.*/g'; }

check_panels() {
  local title query empty=0 count=0
  while IFS=$'\t' read -r title query; do
    count=$((count + 1))
    query=$(substituted <<<"$query")
    [[ $query != *'$'* ]] || fail "panel \"$title\": unknown variable in $query"
    holds "$query" || { echo "panel \"$title\" shows nothing: $query" >&2; empty=$((empty + 1)); }
  done < <(jq -r '
    (.panels[] | .title as $title | .targets[]? | [$title, .expr]),
    (.templating.list[] | select(.type == "query") | ["variable " + .name, (.definition | capture("^label_values\\((?<q>.*), [a-z]+\\)$").q)])
    | join("\t")' "$dashboard")
  [ "$empty" = 0 ] || fail "$empty of $count queries of the dashboard return no number"
  [ "$count" -ge 60 ] || fail "the dashboard has only $count queries"
  echo "dashboard: $count queries return data"
}

# healthy says whether Prometheus evaluated every rule without an error.
healthy() { curl -sS "$api/rules" | jq -e '[.data.groups[].rules[].health] | length > 0 and all(. == "ok")' >/dev/null; }

check_rules() {
  until_ 10 "Prometheus evaluated every rule" healthy
  local record name alert
  for record in $(curl -sS "$api/rules" | jq -r '.data.groups[].rules[] | select(.type == "recording").name'); do
    holds "$record" || fail "rule $record records nothing"
  done
  # An alert on a name that nobody has would be silent for ever.
  curl -sS "$api/label/__name__/values" | jq -r '.data[]' >"$dir/names.txt"
  for name in $(curl -sS "$api/rules" | jq -r '.data.groups[].rules[].query' | sed 's/"[^"]*"//g; s/by ([^)]*)//g; s/on ([^)]*)//g; s/{[^}]*}//g' |
    grep -oE '[a-z][a-z0-9_:]*_[a-z0-9_:]+|\bup\b' | grep -v '^histogram_quantile$' | sort -u); do
    grep -qx "$name" "$dir/names.txt" || fail "the rules use $name, which does not exist"
  done
  # What the load broke must be on its way to an alert, or have been.
  for alert in R8limiterUpstreamFailing R8limiterUpstream5xx R8limiterUnavailable R8limiterStoreErrors \
    R8limiterDegraded R8limiterUnlimited R8limiterStoreCondition R8limiterTargetsEjected R8limiterUpstreamEjected \
    R8limiterConnectionsPerClient R8limiterCertificateExpiresSoon R8limiterCertificateReload; do
    until_ 5 "$alert is pending" holds "max_over_time(ALERTS{alertname=\"$alert\"}[2m])"
  done
  echo "rules: all evaluated, all record, all names exist"
}

deb_tool curl curl
deb_tool jq jq
deb_tool redis-server redis-server
unpack_prometheus
check_files
gateway=${R8LIMITER_BIN:-$dir/r8limiter}
[ -n "${R8LIMITER_BIN:-}" ] || CGO_ENABLED=0 go build -o "$gateway" .
start_all
load
check_metrics
check_load
check_panels
check_rules
echo "observability: fine"
