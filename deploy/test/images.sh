#!/usr/bin/env bash
# Builds the Dockerfile and starts docker-compose.yml for real, then asks the
# composed stack what the README's first two minutes ask, and more.
#
# Runs a containerd and a dockerd of its own, with their state in a temporary
# directory: first in the host's network, where build steps reach the Go module
# proxy, then in a network namespace, where compose gets bridges and firewall
# rules without touching the host's. No registry is asked: the base images are
# stand-ins of the same names, made of this machine's Go toolchain, of
# busybox and of Debian's redis-server and prometheus.
#
# Needs root, Linux, Go and Debian's or Ubuntu's packages; two to three minutes, at
# first some more to compile what is cached later.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || exec sudo env "PATH=$PATH" "HOME=$HOME" bash "deploy/test/images.sh"
# shellcheck source=deploy/test/tools.sh
source deploy/test/tools.sh
deb_tool dockerd docker.io
deb_tool iptables iptables
deb_tool ip iproute2
deb_tool redis-server redis-server
deb_tool curl curl ca-certificates
deb_tool jq jq
deb_tool busybox busybox-static

run=$(mktemp -d "${TMPDIR:-/tmp}/r8images.XXXXXX")
id=r8images$$
forward=$(cat /proc/sys/net/ipv4/ip_forward)
# dockerd writes a key here, wherever its state is.
key=/etc/docker/key.json
[ ! -e "$key" ] || key=''
dockerd='' containerd=''
export DOCKER_HOST=unix://$run/docker.sock DOCKER_CONFIG=$run/client
export COMPOSE_PROJECT_NAME=$id R8LIMITER_VERSION=test-$$ R8LIMITER_ADMIN_TOKEN=a-token-of-this-test-only
mkdir "$DOCKER_CONFIG"
# The daemon's own client, not one that stands before it on PATH: it can drive
# the BuildKit inside the daemon without a plugin.
docker=/usr/bin/docker
[ -x $docker ] || docker=$(command -v docker)
docker() { "$docker" "$@"; }

compose=(docker-compose)
if ! command -v docker-compose >/dev/null && docker compose version >/dev/null 2>&1; then
  compose=("$docker" compose)
fi
deb_tool "${compose[0]}" docker-compose

step() { echo "--- $* (${SECONDS}s)"; }

# poll SECONDS COMMAND...: until it succeeds.
poll() {
  local until=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || return 1
    sleep 0.2
  done
}

stop() { # PID: TERM, and KILL after 20 s; nothing if there is none
  [ -n "$1" ] || return 0
  kill "$1" 2>/dev/null || return 0
  poll 20 eval "! kill -0 $1" || kill -9 "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}

# Processes whose command line names our directory: shims of containers.
ours() {
  local each
  for each in /proc/[0-9]*; do
    [ "${each#/proc/}" = $$ ] || [ "${each#/proc/}" = "$BASHPID" ] ||
      ! { tr '\0' ' ' <"$each/cmdline" | grep -qF "$run/"; } 2>/dev/null || echo "${each#/proc/}"
  done
}

cleanup() {
  local status=$? each
  set +e
  trap - EXIT
  [ $status = 0 ] || { grep -hE 'level=(error|fatal)' "$run"/*.log; tail -n 15 "$run/build.log"; compose logs --no-color --tail 15; } >&2 2>/dev/null
  [ -z "$dockerd" ] || docker ps -aq | xargs -r timeout 60 "$docker" rm -fv >/dev/null 2>&1
  stop "$dockerd"
  stop "$containerd"
  for each in $(ours); do kill -9 "$each" 2>/dev/null; done
  # Deepest first; a second round for what was mounted over another.
  for _ in 1 2; do awk -v d="$run/" 'index($2, d) == 1 {print $2}' /proc/self/mounts | sort -r | xargs -r -n1 umount 2>/dev/null; done
  [ ! -e "/run/netns/$id" ] || ip netns del "$id"
  find /sys/fs/cgroup -depth -type d -path "*/$id*" -exec rmdir {} + 2>/dev/null
  [ -z "$key" ] || rm -f "$key"
  [ "$(cat /proc/sys/net/ipv4/ip_forward)" = "$forward" ] || echo "$forward" >/proc/sys/net/ipv4/ip_forward
  rm -rf --one-file-system "$run" || status=1
  [ -z "$(ours)$(grep -F "$run/" /proc/self/mounts)" ] || { echo "left behind: $(ours) $(grep -F "$run/" /proc/self/mounts)" >&2; status=1; }
  exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM
trap 'echo "FAIL: line $LINENO: $BASH_COMMAND" >&2' ERR

# start_dockerd LOG [PREFIX...]: the flags that follow `--` go to dockerd.
start_dockerd() {
  local log=$1 prefix=()
  shift
  while [ "$1" != -- ]; do prefix+=("$1"); shift; done
  shift
  "${prefix[@]}" dockerd --config-file "$run/daemon.json" --host "$DOCKER_HOST" --pidfile "$run/docker.pid" \
    --data-root "$run/data" --exec-root "$run/exec" --containerd "$run/containerd.sock" \
    --containerd-namespace "$id" --containerd-plugins-namespace "$id-plugins" \
    --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$id" "$@" >"$run/$log.log" 2>&1 &
  dockerd=$!
  poll 30 docker version || fail "dockerd does not start"
}

compose() { "${compose[@]}" "$@"; }
inside() { nsenter --net="/run/netns/$id" "$@"; }
container() { docker ps -aq --filter "label=com.docker.compose.project=$id" --filter "label=com.docker.compose.service=$1"; }
state() { docker inspect -f "$1" "$(container r8limiter)"; }
healthy() { [ "$(state '{{.State.Health.Status}}')" = healthy ]; }

step "compose file, with and without monitoring"
compose config -q
compose --profile monitoring config >"$run/monitoring.yaml"
for each in prom/prometheus:v grafana/grafana: deploy/prometheus deploy/grafana deploy/docker/grafana; do
  grep -qF "$each" "$run/monitoring.yaml" || fail "profile monitoring lacks $each"
done
! docker compose version >/dev/null 2>&1 || docker compose --profile monitoring config -q

step "daemon in the host's network"
echo '{}' >"$run/daemon.json"
cat >"$run/containerd.toml" <<TOML
version = 2
root = "$run/containerd"
state = "$run/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$run/containerd.sock"
TOML
containerd --config "$run/containerd.toml" >"$run/containerd.log" 2>&1 &
containerd=$!
start_dockerd dockerd-host -- --bridge=none --iptables=false --ip6tables=false --ip-forward=false

step "stand-ins for the base images"
# with_libraries ROOT FILE...: copies programs and what they are linked with.
with_libraries() {
  local root=$1 each
  shift
  for each in "$@"; do
    install -D "$each" "$root/usr/bin/$(basename "$each")"
    { ldd "$each" || true; } 2>/dev/null | sed -nE 's#^[^/]*(/[^ ]*) \(.*#\1#p' | sort -u | while read -r lib; do install -D "$lib" "$root$lib"; done
  done
}
shell() { # ROOT: busybox and its commands, users, /tmp
  mkdir -p "$1"/{bin,etc,tmp,usr/bin}
  chmod 1777 "$1/tmp"
  with_libraries "$1" "$(command -v busybox)"
  local each
  for each in $(busybox --list); do ln -sf ../usr/bin/busybox "$1/bin/$each"; done
  printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$1/etc/passwd"
}
# What the builds below compile is compiled here first, into a cache that
# outlives the test: what they then prove is the Dockerfile, in seconds.
compiled=$tools/images-gocache
[ "$(du -sm "$compiled" 2>/dev/null | cut -f1)" -lt 1000 ] 2>/dev/null || rm -rf "$compiled"
for arch in "$(go env GOHOSTARCH)" arm64; do
  GOCACHE=$compiled CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -buildvcs=false -o /dev/null .
done
go=$(go env GOROOT)
shell "$run/golang"
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$run/golang/etc/ssl/certs/ca-certificates.crt"
mkdir -p "$run/golang/go"
tar -C "$run/golang" -c . -C "$tools" --transform "s#^images-gocache#compiled#" images-gocache \
  -C "${go%/*}" --transform "s#^${go##*/}#usr/local/go#" \
  --exclude "${go##*/}/test" --exclude "${go##*/}/doc" --exclude "${go##*/}/api" --exclude 'testdata' "${go##*/}" |
  docker import -c 'ENV PATH=/usr/local/go/bin:/usr/bin:/bin' -c 'ENV GOPATH=/go' -c 'ENV GOCACHE=/compiled' -c 'ENV GOTOOLCHAIN=local' \
    -c "ENV GOPROXY=$(go env GOPROXY)" -c "ENV GOSUMDB=$(go env GOSUMDB)" - golang:1.26-alpine >/dev/null
shell "$run/redis"
with_libraries "$run/redis" "$(command -v redis-server)" "$(command -v redis-cli)"
mkdir "$run/redis/data"
tar -C "$run/redis" -c . | docker import -c 'WORKDIR /data' -c 'VOLUME /data' - redis:7-alpine >/dev/null

step "build: classic builder"
build() { docker build --network host --build-arg VERSION="$R8LIMITER_VERSION" --build-arg REVISION=0123abc "$@" . >"$run/build.log" 2>&1 || fail "build $*"; }
DOCKER_BUILDKIT=0 build -t "r8limiter:$R8LIMITER_VERSION"
image() { docker image inspect -f "$2" "$1"; }
it=r8limiter:$R8LIMITER_VERSION
[ "$(docker run --rm --network none "$it" version)" = "r8limiter $R8LIMITER_VERSION" ] || fail "the version is not the build argument's"
[ "$(image "$it" '{{.Config.User}}')" = 65532:65532 ] || fail "the image's user"
[ "$(image "$it" '{{index .Config.Labels "org.opencontainers.image.version"}} {{index .Config.Labels "org.opencontainers.image.revision"}}')" = "$R8LIMITER_VERSION 0123abc" ] || fail "labels"
docker run --rm --network none "$it" check | grep -q ': ok$' || fail "the image's own configuration"
docker create --name files "$it" >/dev/null
docker export files | tar -t | grep -vE '/$|^(dev|etc|proc|sys)/|^\.dockerenv$' | sort >"$run/files"
docker rm files >/dev/null
[ "$(xargs <"$run/files")" = "LICENSE r8limiter" ] || fail "files in the image: $(xargs <"$run/files")"
printf 'size of the image: %s MB\n' $(($(image "$it" '{{.Size}}') / 1000000))

step "context of the build"
printf 'FROM scratch\nCOPY . /\n' >"$run/context.dockerfile"
DOCKER_BUILDKIT=0 docker build -q -f - -t context . <"$run/context.dockerfile" >/dev/null
docker create --name context context x >/dev/null
docker export context | tar -t | grep -v '/$' >"$run/context"
docker rm context >/dev/null
! grep -E '_test\.go$|testdata|^\.git|^loadtest|^README|^deploy/test|\.env' "$run/context" || fail "these should not be in the context"

step "build: BuildKit, crossing to arm64"
# machine IMAGE FILE: that of an ELF file; 183 is aarch64.
machine() {
  docker create --name machine "$1" x >/dev/null
  docker cp "machine:$2" - | tar -xO | od -An -tu2 -j18 -N2 | tr -d ' '
  docker rm machine >/dev/null
}
DOCKER_BUILDKIT=1 build --platform linux/arm64 -t r8limiter:arm64
[ "$(image r8limiter:arm64 '{{.Os}}/{{.Architecture}}')" = linux/arm64 ] || fail "the image's platform"
[ "$(machine r8limiter:arm64 /r8limiter)" = 183 ] || fail "the image's binary"

stop "$dockerd"
dockerd=''

step "daemon in a network namespace"
ip netns add "$id"
inside ip link set lo up
start_dockerd dockerd-inside nsenter --net="/run/netns/$id" --

step "compose up"
compose up -d --no-build
[ "$(docker ps --format '{{.Label "com.docker.compose.service"}}' | sort | xargs)" = "r8limiter redis" ] || fail "other containers than r8limiter and redis run"
poll 60 healthy || fail "HEALTHCHECK does not get healthy: $(state '{{json .State.Health}}')"
[ "$(awk '$1 == "Uid:" {print $2, $3}' "/proc/$(state '{{.State.Pid}}')/status")" = "65532 65532" ] || fail "not uid 65532"
grep -q '^CapEff:[[:space:]]*0000000000000000$' "/proc/$(state '{{.State.Pid}}')/status" || fail "the process has capabilities"

# What stands in the README as `    $ COMMAND` and the first line of its answer
# below, put to the composed stack. Numbers differ from run to run; of JSON the
# keys are compared.
step "README's first two minutes"
sed -n '/^## Two minutes/,/^## Commands/s/^    //p' README.md >"$run/readme"
shape() { # the first line; JSON: its keys
  head -n 1 | tr -d '\r' | { read -r line || true; jq -c 'keys' <<<"$line" 2>/dev/null || echo "$line"; }
}
# The control listener of a container wants the token.
# shellcheck disable=SC2016 # expanded by the inner bash
as_written='curl() {
  case "$*" in */admin/*) set -- -H "Authorization: Bearer $R8LIMITER_ADMIN_TOKEN" "$@" ;; esac
  command curl -s -m 10 "$@"
}
eval "$1"'
asked=0
while IFS= read -r line <&3; do
  [ "${line:0:2}" = '$ ' ] || continue
  command=${line:2}
  IFS= read -r want <&3
  # A slow machine refills the bucket between its requests: three tries.
  for _ in 1 2 3; do
    inside bash -c "$as_written" bash "$command" >"$run/answer"
    [ "$(shape <"$run/answer")" != "$(shape <<<"$want")" ] || break
  done
  [ "$(shape <"$run/answer")" = "$(shape <<<"$want")" ] || fail "$command: got $(head -n 1 "$run/answer"), README says $want"
  if [ "${want:0:4}" = HTTP ]; then
    for field in ratelimit-policy ratelimit; do
      grep -qi "^$field: \"" "$run/answer" || fail "$command: no $field"
    done
  fi
  case "$want" in *' 429 '*) grep -qiE '^retry-after: [1-9]' "$run/answer" || fail "$command: no Retry-After" ;; esac
  echo "ok: $command"
  asked=$((asked + 1))
done 3<"$run/readme"
[ $asked -ge 5 ] || fail "README has only $asked commands to try"

# ask STATUS METHOD URL [CURL ARGUMENTS...]: prints the body.
ask() {
  local want=$1 got
  got=$(inside curl -s -m 10 -o "$run/body" -w '%{http_code}' -X "$2" "${@:3}") || fail "$2 $3: no answer"
  [ "$got" = "$want" ] || fail "$2 $3: got $got, want $want: $(cat "$run/body")"
  cat "$run/body"
}
token="Authorization: Bearer $R8LIMITER_ADMIN_TOKEN"

step "tokens, a burst, a debt"
ask 401 GET localhost:8000/admin/stats >/dev/null
ask 401 GET localhost:8000/admin/stats -H 'Authorization: Bearer wrong' >/dev/null
ask 200 GET localhost:8000/admin/stats -H "$token" | jq -e '.allowed_total > 0 and .denied_total > 0' >/dev/null || fail "the stats count nothing"
# A bucket of a hundred that gains fifty a second; one curl, one connection.
inside curl -s -m 20 -o /dev/null -w '%{http_code}\n' -H 'X-User-Id: burst' 'localhost:8080/v1/items/[1-400]' >"$run/burst"
[ "$(head -n 100 "$run/burst" | sort | uniq -c | xargs)" = "100 200" ] || fail "a burst: $(sort "$run/burst" | uniq -c | xargs)"
grep -q 429 "$run/burst" || fail "a burst passes: $(sort "$run/burst" | uniq -c | xargs)"
ask 200 POST 'localhost:8000/allow?user_id=debtor&resource=search&cost=20' | jq -e .allowed >/dev/null
# 20 of 10000 a day come back in three minutes; the test is past in one.
indebted() {
  ask 200 GET localhost:8000/admin/user/debtor -H "$token" |
    jq -e '[.resources[] | select(.limit == "daily")][0].tokens | . >= 9980 and . < 9995' >/dev/null ||
    fail "$1: the debt is gone: $(cat "$run/body")"
}
indebted "at first"

step "docker stop and start of r8limiter"
docker stop -t 35 "$(container r8limiter)" >/dev/null
[ "$(state '{{.State.ExitCode}} {{.State.OOMKilled}}')" = "0 false" ] || fail "docker stop: exit code $(state '{{.State.ExitCode}}')"
docker start "$(container r8limiter)" >/dev/null
poll 30 healthy || fail "not healthy after a restart"
indebted "after a restart of r8limiter"

step "without Redis, and Redis back"
docker stop "$(container redis)" >/dev/null
ask 503 GET localhost:8000/readyz >/dev/null
! docker exec "$(container r8limiter)" /r8limiter health >/dev/null || fail "health says fine without Redis"
docker start "$(container redis)" >/dev/null
poll 30 eval 'inside curl -sf -m 2 localhost:8000/readyz' || fail "not ready after Redis came back"
indebted "after a restart of Redis"

step "monitoring: Prometheus of the profile scrapes the gateway"
prometheus=$tools/prometheus
if [ ! -x "$prometheus/usr/bin/prometheus" ]; then
  mkdir -p "$prometheus"
  (cd "$prometheus" && rm -f prometheus_*.deb && apt-get download -q prometheus && dpkg -x prometheus_*.deb .) >&2
fi
with_libraries "$run/prometheus" "$prometheus/usr/bin/prometheus"
shell "$run/prometheus"
mv "$run/prometheus/usr/bin/prometheus" "$run/prometheus/bin/prometheus"
install -d -o 65534 -g 65534 "$run/prometheus/prometheus"
tar -C "$run/prometheus" -c . | docker import -c 'USER 65534' -c 'ENTRYPOINT ["/bin/prometheus"]' \
  -c 'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]' - \
  "$(sed -n 's/^ *image: *\(prom\/prometheus:.*\)/\1/p' docker-compose.yml)" >/dev/null
compose --profile monitoring up -d --no-build prometheus
scraped() {
  [ "$(inside curl -s -m 5 localhost:9090/api/v1/query --data-urlencode 'query=up{job="r8limiter"}' | jq -r '.data.result[].value[1]')" = 1 ]
}
poll 60 scraped || fail "Prometheus does not scrape: $(inside curl -s -m 5 localhost:9090/api/v1/targets)"
if [ -e deploy/prometheus/rules.yaml ]; then
  [ "$(inside curl -s -m 5 localhost:9090/api/v1/rules | jq '.data.groups | length')" -gt 0 ] || fail "Prometheus has no rules"
fi

step "compose down"
compose --profile monitoring down -v -t 35
[ -z "$(docker ps -aq)" ] || fail "containers are left"
echo "images: ok (${SECONDS}s)"
