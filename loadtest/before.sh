#!/usr/bin/env bash
# CPU per request of two builds of r8limiter on the plain proxied path: the same
# upstream, the same load, in interleaved rounds. Prints each round's CPU
# microseconds per request of both, and the median of the rounds' ratios.
#
#   loadtest/before.sh OLD_BINARY [ROUNDS [SECONDS]]        default: 9 rounds of 4 s
#
# Needs Linux, nginx (the upstream), wrk, taskset and Go. The gateways have CPU 0 to
# themselves, wrk and the upstream share CPU 1. Everything is on loopback and
# ends with the script.
#
# nginx' $variables stay unexpanded, and `run CPU NAME` sets the variable NAME:
# shellcheck disable=SC2016,SC2154
set -euo pipefail
old=$(realpath "$1")
cd "$(dirname "$0")/.."
rounds=${2:-9} seconds=${3:-4}
dir=$(mktemp -d)
pids=()
finish() {
  for pid in "${pids[@]}"; do kill -INT "$pid" 2>/dev/null || true; done
  wait
  rm -rf "$dir"
}
trap finish EXIT

CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$dir/r8limiter" .
cat >"$dir/upstream.conf" <<EOF
daemon off; worker_processes 1; pid $dir/upstream.pid; error_log $dir/upstream.log;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 100000000; server { listen 127.0.0.1:18281;
  location / { default_type application/json; return 200 "{\"id\":7,\"name\":\"an item of the catalogue\",\"price\":\"12.50\"}"; } } }
EOF

# gateway NAME PORT: a configuration
gateway() {
  cat >"$dir/$1.yaml" <<EOF
proxy:
  listen: "127.0.0.1:$2"
  upstreams: {api: {targets: ["http://127.0.0.1:18281"]}}
  routes: [{name: all, user_id: ["{header.X-User-Id}", "{client_ip}"], upstream: api}]
limiter: {default: {capacity: 1000000000, refill_rate: 1000000/s}}
admin: {listen: "127.0.0.1:$((1 + $2))"}
log: {requests: none}
EOF
}
gateway old 18282
gateway new 18284

# run CPU VARIABLE COMMAND...: starts a process and keeps its id in the variable
run() {
  taskset -c "$1" "${@:3}" >>"$dir/out" 2>&1 &
  printf -v "$2" %s $!
  pids+=($!)
}
run 1 upstream nginx -c "$dir/upstream.conf"
export GOMAXPROCS=1
run 0 before "$old" -config "$dir/old.yaml"
run 0 after "$dir/r8limiter" -config "$dir/new.yaml"
sleep 1

# cpu PID: user and system time in clock ticks
cpu() { cut -d' ' -f14,15 "/proc/$1/stat" | tr ' ' '+' | bc; }

# round PID PORT: CPU microseconds per request
round() {
  local start count
  start=$(cpu "$1")
  count=$(taskset -c 1 wrk -t1 -c64 -d"${seconds}s" -H 'X-User-Id: ann' "http://127.0.0.1:$2/v1/items/7" | awk '/requests in/ {print $1}')
  echo "scale=2; ($(cpu "$1") - $start) * 1000000 / $(getconf CLK_TCK) / $count" | bc
}
round "$before" 18282 >/dev/null
round "$after" 18284 >/dev/null
for ((i = 1; i <= rounds; i++)); do
  a=$(round "$before" 18282) b=$(round "$after" 18284)
  echo "round $i: before $a us, after $b us, ratio $(echo "scale=3; $b / $a" | bc)" | tee -a "$dir/rounds"
done
awk '{print $NF}' "$dir/rounds" | sort -n | awk '{r[NR] = $1} END {print "median ratio", r[int((NR + 1) / 2)]}'
