#!/usr/bin/env bash
# r8limiter against nginx limit_req: the same upstream, the same load, in
# interleaved rounds. Prints one line a round, then the medians: requests per
# second, p50 and p99 in milliseconds, CPU microseconds per request of the
# system under test (from /proc), of Redis, and calls of the script for each request.
# "one user" lines are of a single user, whose bucket is leased, or denies.
#
#   loadtest/compare.sh [ROUNDS [SECONDS]]        default: 7 rounds of 4 s
#
# Needs Linux, nginx, wrk, redis-server, taskset and Go. The system under test has CPU
# 0 to itself; wrk (64 keep-alive connections, 1,000 users, no limit reached),
# the upstream and Redis share CPU 1. Everything is on loopback and ends with the script.
#
# nginx' $variables stay unexpanded, and `run CPU NAME` sets the variable NAME:
# shellcheck disable=SC2016,SC2154
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-7} seconds=${2:-4}
dir=$(mktemp -d)
pids=()
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait
  rm -rf "$dir"
}
trap finish EXIT

CGO_ENABLED=0 go build -o "$dir/r8limiter" .

# conf NAME HTTP: an nginx of one worker that stays in the foreground
conf() {
  cat >"$dir/$1.conf" <<EOF
daemon off; worker_processes 1; pid $dir/$1.pid; error_log $dir/$1.log;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 100000000; $2 }
EOF
}
conf upstream 'server { listen 127.0.0.1:18081; location / { default_type application/json; return 200 "{\"id\":7,\"name\":\"an item of the catalogue\",\"price\":\"12.50\"}"; } }'
conf nginx 'limit_req_zone $http_x_user_id zone=users:10m rate=1000000r/s;
  upstream api { server 127.0.0.1:18081; keepalive 64; keepalive_requests 100000000; }
  server { listen 127.0.0.1:18082; location / { limit_req zone=users burst=1000000 nodelay;
    proxy_pass http://api; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header X-Forwarded-For $remote_addr; } }'

# gateway NAME PORT LIMIT MORE: a configuration of r8limiter
gateway() {
  cat >"$dir/$1.yaml" <<EOF
proxy:
  listen: "127.0.0.1:$2"
  upstreams: {api: {targets: ["http://127.0.0.1:18081"]}}
  routes: [{name: all, user_id: ["{header.X-User-Id}", "{client_ip}"], upstream: api}]
limiter:
  default: {$3}
  headers: []
$4
admin: {listen: "127.0.0.1:$((1 + $2))"}
log: {requests: none}
EOF
}
wide='capacity: 1000000000, refill_rate: 1000000/s' shared="  redis: {url: \"unix://$dir/redis.sock\", timeout: 1s"
gateway memory 18084 "$wide" ''
gateway redis 18086 "$wide" "$shared}"
gateway leased 18088 "$wide, precision: leased" "$shared, key_prefix: leased}"
gateway denied 18090 "capacity: 1, refill_rate: 1/d" "$shared, key_prefix: denied}"

# run CPU VARIABLE COMMAND...: starts a process and keeps its id in the variable
run() {
  local cpu=$1
  taskset -c "$cpu" "${@:3}" >>"$dir/out" 2>&1 &
  printf -v "$2" %s $!
  pids+=($!)
}
run 1 upstream nginx -c "$dir/upstream.conf"
run 1 redis redis-server --port 0 --unixsocket "$dir/redis.sock" --save '' --appendonly no
run 0 nginx nginx -c "$dir/nginx.conf"
export GOMAXPROCS=1
run 0 memory "$dir/r8limiter" -config "$dir/memory.yaml"
run 0 shared "$dir/r8limiter" -config "$dir/redis.yaml"
run 0 leased "$dir/r8limiter" -config "$dir/leased.yaml"
run 0 denied "$dir/r8limiter" -config "$dir/denied.yaml"
sleep 1

cat >"$dir/users.lua" <<'EOF'
local n, users = 0, 1000
local requests = {}
init = function(args)
  users = tonumber(args[1])
  for i = 1, users do requests[i] = wrk.format("GET", "/v1/items/7", {["X-User-Id"] = "user-" .. i}) end
end
request = function() n = n % users + 1; return requests[n] end
done = function(s, latency)
  io.write(string.format("RESULT %d %d %.2f %.2f\n", s.requests, s.duration, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
  if s.errors.connect + s.errors.read + s.errors.timeout > 0 then io.write("ERRORS\n") end
end
EOF

# ticks PID: CPU time of a process and its children, in hundredths of a second
ticks() {
  local pid sum=0
  for pid in $1 $(cat "/proc/$1/task/$1/children"); do
    sum=$((sum + $(awk '{print $14 + $15}' "/proc/$pid/stat")))
  done
  echo $sum
}

# scripts: how often Redis ran a script
scripts() { redis-cli -s "$dir/redis.sock" info commandstats | sed -n 's/^cmdstat_eval\(sha\)\?:calls=\([0-9]*\).*/\2/p' | awk '{ n += $1 } END { print n + 0 }'; }

# round NAME PORT PID USERS [STATUS]: all answers must have that status
round() {
  local c0 r0 c1 r1 result s0 s1 bad
  s0=$(scripts)
  c0=$(ticks "$3") r0=$(ticks "$redis")
  result=$(taskset -c 1 wrk -t1 -c64 -d"${seconds}s" -s "$dir/users.lua" "http://127.0.0.1:$2" -- "$4")
  c1=$(ticks "$3") r1=$(ticks "$redis") s1=$(scripts)
  bad=$(awk '/^RESULT/ { all = $2 } /Non-2xx/ { bad = $NF } END { print (bad + 0 == 0) ? "200" : (bad > all - 100) ? "429" : "mixed" }' <<<"$result")
  [ "$bad" = "${5:-200}" ] || { echo "$1: answers are $bad" >&2; exit 1; }
  case $result in *ERRORS*) echo "$1: the load met errors: $result" >&2; exit 1 ;; esac
  awk -v name="$1" -v cpu=$((c1 - c0)) -v redis=$((r1 - r0)) -v calls=$((s1 - s0)) \
    '/^RESULT/ { printf "%-18s %8.0f req/s  p50 %5.2f  p99 %6.2f ms  %6.2f us  redis %5.2f us  %7.5f calls\n", name, $2 * 1e6 / $3, $4, $5, cpu * 1e4 / $2, redis * 1e4 / $2, calls / $2 }' <<<"$result" |
    tee -a "$dir/results"
}
for _ in $(seq "$rounds"); do
  round nginx 18082 "$nginx" 1000
  round memory 18084 "$memory" 1000
  round redis 18086 "$shared" 1000
  round memory-one-user 18084 "$memory" 1
  round leased-one-user 18088 "$leased" 1
  round denied-one-user 18090 "$denied" 1 429
done
echo "medians:"
for name in nginx memory redis memory-one-user leased-one-user denied-one-user; do
  line=$name
  for column in 2 5 7 9 12 14; do
    line+=" $(grep "^$name " "$dir/results" | awk -v c=$column '{print $c}' | sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}')"
  done
  # shellcheck disable=SC2086
  printf '%-18s %8s req/s  p50 %5s  p99 %6s ms  %6s us  redis %5s us  %7s calls\n' $line
done

# ratio TEXT EXPRESSION: the median over the rounds, of which each has its own noise
ratio() {
  awk "{ us[\$1] = \$9 } \$1 == \"denied-one-user\" { print $2 }" "$dir/results" | sort -n |
    awk -v text="$1" '{ v[NR] = $1 } END { printf "%-62s %.2f\n", text, v[int((NR + 1) / 2)] }'
}
echo "medians of the rounds' ratios of CPU time:"
ratio 'in memory, of what nginx takes' 'us["memory"] / us["nginx"]'
ratio 'Redis, of what nginx takes' 'us["redis"] / us["nginx"]'
ratio 'what Redis adds to in memory, of what nginx takes' '(us["redis"] - us["memory"]) / us["nginx"]'
ratio 'one user leased, of one user in memory' 'us["leased-one-user"] / us["memory-one-user"]'
