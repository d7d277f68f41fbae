#!/usr/bin/env bash
# Runs the k6 scripts smoke and limits quickly, in memory and with Redis, against
# the proxy listener and POST /allow; then sees that they fail when the limit or
# the latency is wrong.
#
# Needs Linux, Go and curl; installs k6 (some four minutes, once) and redis-server.
# Takes about a minute after that, on loopback only. P99 is the latency in
# milliseconds at which it fails: not the SLO, since machines that run tests are
# shared; set P99=10 to hold a quiet one to it.
set -euo pipefail
cd "$(dirname "$0")/../.."
source deploy/test/tools.sh
export QUICK=1 P99=${P99:-500}

# The two configurations must be one, but for their heads and the store.
body() { sed '1,/^proxy:/d' "$1"; }
diff <(body loadtest/config.yaml) <(body loadtest/config.redis.yaml | sed '/^  redis:/,/^$/{/^$/!d}') ||
  fail "loadtest/config.yaml and loadtest/config.redis.yaml differ in more than the store"

go_tool k6 go.k6.io/k6@v1.8.1
deb_tool redis-server redis-server
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export R8LIMITER=$dir/r8limiter
CGO_ENABLED=0 go build -o "$R8LIMITER" .

for store in memory redis; do
  for target in proxy allow; do
    for script in smoke limits; do
      timeout 60 loadtest/run.sh "$script" "$store" "$target" || fail "$script $store $target: exit code $?"
    done
  done
done

# must_fail WORD VARIABLE=VALUE... SCRIPT: fails the run unless k6 found that a
# threshold was crossed, and said so about WORD
must_fail() {
  local word=$1 code=0
  timeout 60 env ROUNDS=1 "${@:2:$#-2}" loadtest/run.sh "${@: -1}" memory proxy >"$dir/out" 2>&1 || code=$?
  if [ "$code" != 99 ] || ! grep -q "FAILED $word" "$dir/out"; then
    cat "$dir/out" >&2
    fail "${*:2} should have failed on $word with exit code 99, got $code"
  fi
  echo "as it should, this fails on $word: ${*:2}"
}
must_fail upper CAPACITY=30 DURATION=2 limits # the gateway gives 40
must_fail lower CAPACITY=60 DURATION=2 limits
must_fail upper REFILL=15 DURATION=3 limits   # and 20 a second
must_fail http_req_duration P99=0.001 DURATION=1 smoke
echo "k6: all good"
