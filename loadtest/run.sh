#!/usr/bin/env bash
# Runs one k6 script against a gateway of this tree: builds r8limiter, starts it
# (and redis-server) on free ports of loopback, runs k6, prints its summary and
# the CPU time that each process took, and stops everything.
#
#   loadtest/run.sh SCRIPT [memory|redis] [proxy|allow]      default: memory proxy
#
# SCRIPT is smoke, ramp, spike, soak or limits; their variables (QUICK=1, RATE,
# DURATION, ...) are in the head of each and of lib.js. The exit code is k6's: 99
# if a threshold failed. Needs Linux, Go, curl and, for redis, redis-server. k6
# is built once, in some four minutes. R8LIMITER is a binary to use as it is.
# GATEWAY_CPUS and K6_CPUS (as 0 or 0-3) pin the two.
set -euo pipefail
cd "$(dirname "$0")/.."
source deploy/test/tools.sh

script=${1:-} store=${2:-memory} target=${3:-proxy}
case $script:$store:$target in
  smoke:* | ramp:* | spike:* | soak:* | limits:*) ;;
  *) script= ;;
esac
case $store:$target in memory:proxy | memory:allow | redis:proxy | redis:allow) ;; *) script= ;; esac
if [ -z "$script" ]; then
  echo "usage: loadtest/run.sh smoke|ramp|spike|soak|limits [memory|redis] [proxy|allow]" >&2
  exit 2
fi
go_tool k6 go.k6.io/k6@v1.8.1
if [ "$store" = redis ]; then deb_tool redis-server redis-server; fi

dir=$(mktemp -d)
pids=()
# shellcheck disable=SC2317 # the trap calls it
finish() {
  if [ ${#pids[@]} -gt 0 ]; then
    kill -INT "${pids[@]}" 2>/dev/null || true # SIGINT skips the five seconds of the drain
    wait "${pids[@]}" 2>/dev/null || true
  fi
  rm -rf "$dir"
}
trap finish EXIT

if [ -z "${R8LIMITER:-}" ]; then
  R8LIMITER=$dir/r8limiter
  CGO_ENABLED=0 go build -o "$R8LIMITER" .
fi

# free_port sets `port`: one that nobody listens on, below the range that
# connections take theirs from, and not given before
port='' taken=" "
free_port() {
  for _ in $(seq 100); do
    port=$((20000 + RANDOM % 10000))
    case $taken in *" $port "*) continue ;; esac
    if ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      taken+="$port "
      return
    fi
  done
  fail "no free port found"
}
free_port; proxy_port=$port
free_port; control_port=$port
free_port; redis_port=$port

# until_it COMMAND...: tries for ten seconds
until_it() {
  for _ in $(seq 100); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  cat "$dir"/*.log >&2
  fail "not within 10 s: $*"
}

# pinned CPUS COMMAND...: on these CPUs, or on any
pinned() {
  if [ -n "$1" ]; then exec taskset -c "$1" "${@:2}"; else exec "${@:2}"; fi
}

redis=
config=loadtest/config.yaml
if [ "$store" = redis ]; then
  config=loadtest/config.redis.yaml
  redis-server --bind 127.0.0.1 --port "$redis_port" --dir "$dir" --save '' --appendonly no >"$dir/redis.log" 2>&1 &
  redis=$!
  pids+=("$redis")
  until_it redis-cli -p "$redis_port" ping
fi
export PROXY_LISTEN=127.0.0.1:$proxy_port CONTROL_LISTEN=127.0.0.1:$control_port REDIS_URL=redis://127.0.0.1:$redis_port/0
pinned "${GATEWAY_CPUS:-}" "$R8LIMITER" -config "$config" >"$dir/gateway.log" 2>&1 &
gateway=$!
pids+=("$gateway")
until_it curl -sf "http://$CONTROL_LISTEN/readyz"
kill -0 "$gateway" || fail "the gateway ended: $(cat "$dir/gateway.log")"

# ticks PID: CPU time so far, in hundredths of a second
ticks() { awk '{print $14 + $15}' "/proc/$1/stat"; }
# busy: that of the whole machine
busy() { awk '/^cpu / {print $2 + $3 + $4 + $7 + $8}' /proc/stat; }
# counted: requests that the gateway decided
counted() { curl -s "http://$CONTROL_LISTEN/metrics" | awk '/^requests_total/ {n += $2} END {print n + 0}'; }

start=$(date +%s%N) g0=$(ticks "$gateway") r0=0 n0=$(counted) b0=$(busy)
if [ -n "$redis" ]; then r0=$(ticks "$redis"); fi
export STORE=$store TARGET=$target PROXY_URL=http://$PROXY_LISTEN CONTROL_URL=http://$CONTROL_LISTEN
pinned "${K6_CPUS:-}" k6 run --quiet --no-usage-report --no-color --address '' "loadtest/$script.js" &
k6=$!
pids+=("$k6")
# What k6 took, as long as it lives: the kernel forgets the dead.
k0=0 rss=0
while kill -0 "$k6" 2>/dev/null; do
  k0=$(ticks "$k6" 2>/dev/null || echo "$k0")
  now=$(awk '/^VmHWM/ {print int($2 / 1024)}' "/proc/$k6/status" 2>/dev/null || true)
  rss=${now:-$rss}
  sleep 0.2
done
code=0
wait "$k6" || code=$?
unset 'pids[-1]'
# What k6 measures holds its own work and its wait for a CPU; the gateway's
# clock runs from the whole request to the end of the answer.
own_latency() {
  local endpoint=any
  if [ "$target" = allow ]; then endpoint=/allow; fi
  curl -s "http://$CONTROL_LISTEN/metrics" | awk -F '[" ]' -v endpoint="$endpoint" '
    /^request_latency_seconds_bucket/ && $2 == endpoint { le[++n] = $4; count[n] = $NF }
    END { while (n && count[++i] < 0.99 * count[n]); if (n) printf "by the clock of the gateway 99 of 100 requests took less than %g ms\n", 1000 * le[i] }'
}
kill -0 "$gateway" || fail "the gateway ended during the run: $(tail -5 "$dir/gateway.log")"
r1=0
if [ -n "$redis" ]; then r1=$(ticks "$redis") || fail "Redis ended during the run: $(tail -5 "$dir/redis.log")"; fi
awk -v ns=$(($(date +%s%N) - start)) -v n=$(($(counted) - n0)) -v g=$(($(ticks "$gateway") - g0)) -v r=$((r1 - r0)) -v k="$k0" -v rss="$rss" -v b=$(($(busy) - b0)) \
  -v mem="$(awk '/^VmHWM/ {print int($2 / 1024)}' "/proc/$gateway/status")" 'BEGIN {
  s = ns / 1e9
  printf "CPU of one core, over %.0f s: gateway %.0f %% (%.0f us a request), redis %.0f %%, k6 %.0f %%, all else on this machine %.0f %%; memory at most: gateway %d MB, k6 %d MB\n",
    s, g / s, n ? g * 1e4 / n : 0, r / s, k / s, (b - g - r - k) / s, mem, rss }'
own_latency
exit "$code"
