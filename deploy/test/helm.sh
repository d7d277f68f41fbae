#!/usr/bin/env bash
# The Helm chart: lint, render with every file of ci/, refuse bad values, check
# the manifests against Kubernetes' own schemas and kube-score, the rendered
# configurations with `r8limiter check`, start the bundled Redis and a gateway as
# rendered, and package the chart. Needs Go; installs its tools, which takes some
# minutes the first time and about half a minute afterwards.
set -euo pipefail
cd "$(dirname "$0")/../.."
source deploy/test/tools.sh
go_tool helm helm.sh/helm/v3/cmd/helm@v3.22.0
go_tool kubeconform github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
go_tool kube-score github.com/zegl/kube-score/cmd/kube-score@v1.20.0
deb_tool redis-server redis-server
deb_tool curl curl
kubernetes=v1.37.2
chart=deploy/helm/r8limiter
# A helm built from its module takes itself for one of Kubernetes 1.20.
asked=(--kube-version "${kubernetes#v}")
dir=$(mktemp -d)
started=()
trap '[ ${#started[@]} = 0 ] || { kill -KILL "${started[@]}"; wait "${started[@]}"; } 2>/dev/null || true; rm -rf "$dir"' EXIT

for copy in grafana/r8limiter.json prometheus/rules.yaml; do
  cmp "deploy/$copy" "$chart/files/${copy##*/}" || fail "the chart's copy is old: run deploy/helm/sync.sh"
done

# Schemas for kubeconform out of the definitions that Kubernetes' module holds.
schemas=$tools/schemas-$kubernetes
if [ ! -e "$schemas/done" ]; then
  module=$(cd "$dir" && GOFLAGS=-mod=mod go mod download -json "k8s.io/kubernetes@$kubernetes" | sed -n 's/.*"Dir": "\(.*\)",*/\1/p')
  go run deploy/test/schemas.go "$module/api/openapi-spec/swagger.json" "$schemas"
  touch "$schemas/done"
fi

valid() {
  kubeconform -strict -schema-location "$schemas/{{.ResourceKind}}{{.KindSuffix}}.json" \
    -skip ServiceMonitor,PrometheusRule "$@"
}
# part NAME TEMPLATE: what that template made of ci/NAME.yaml.
part() { awk -v want="/templates/$2" '/^# Source: /{on = index($0, want)} /^---$/{next} on' "$dir/$1.yaml"; }
# below KEY: the block text of KEY in the manifests on stdin, without its indentation.
below() {
  awk -v key="$1:" 'on && substr($0, 1, indent) ~ /[^ ]/ {on = 0} on {print substr($0, indent + 1)} $1 == key && $2 == "|" {on = 1; indent = index($0, key) + 1}'
}

go build -o "$dir/r8limiter" .
# What the Secrets with certificates would hold.
for each in proxy control; do
  mkdir -p "$dir/tls/$each"
  (cd "$dir/tls/$each" && go run "$(go env GOROOT)/src/crypto/tls/generate_cert.go" -host localhost 2>/dev/null && mv cert.pem tls.crt && mv key.pem tls.key && cp tls.crt ca.crt)
done
for values in "$chart"/ci/*.yaml; do
  name=$(basename "$values" .yaml)
  echo "== $name"
  helm lint --strict --quiet "${asked[@]}" "$chart" --values "$values"
  helm template limits "${asked[@]}" "$chart" --namespace edge --values "$values" >"$dir/$name.yaml"
  valid -summary "$dir/$name.yaml"
  # Off: Always pulling a fixed tag; what many replicas need, for the one Redis.
  kube-score score --output-format ci \
    --ignore-test container-image-pull-policy \
    --ignore-test statefulset-has-poddisruptionbudget \
    --ignore-test statefulset-has-host-podantiaffinity \
    "$dir/$name.yaml" >"$dir/score" || { grep CRITICAL "$dir/score"; fail "kube-score: $name"; }
  # The configuration that the pods would read.
  part "$name" configmap.yaml | below config.yaml | sed "s|/etc/r8limiter-tls/|$dir/tls/|" >"$dir/$name.config"
  R8LIMITER_REDIS_URL=rediss://127.0.0.1:6379/0 REDIS_PASSWORD=secret R8LIMITER_ADMIN_TOKEN=0123456789abcdef "$dir/r8limiter" check -config "$dir/$name.config"
done

sed 's/readinessProbe:/readynessProbe:/' "$dir/defaults.yaml" >"$dir/misspelt.yaml"
if valid "$dir/misspelt.yaml" >/dev/null; then fail "kubeconform takes a misspelt field"; fi

# Values that must be refused, and by which word.
refuses() {
  local word=$1
  shift
  if helm template limits "${asked[@]}" "$chart" "$@" >/dev/null 2>"$dir/refusal"; then fail "accepted: $*"; fi
  grep -q "$word" "$dir/refusal" || fail "$*: refused without saying $word: $(cat "$dir/refusal")"
}
refuses replicas --set replicas=3
refuses adminToken --set adminToken=short
refuses mode --set redis.mode=cluster
refuses "redis.url is needed" --set redis.mode=external
refuses redis.url --set redis.mode=external,redis.url=http://redis.example:6379
refuses "terminationGracePeriodSeconds 30 must be above the 30 s" --set terminationGracePeriodSeconds=30
refuses "above the 91 s" --set terminationGracePeriodSeconds=90,config.proxy.drain_timeout=1m30.5s
refuses "no duration" --set config.proxy.drain_timeout=60
refuses limits --set config.limits.x=1
refuses pullPolicy --set image.pullPolicy=Sometimes
refuses digest --set image.digest=latest
refuses listen --set config.admin.listen=127.0.0.1:8000
refuses listen --set config.proxy.listen=8080
refuses listen --set config.admin.listen=null
refuses minReplicas --set autoscaling.minReplicas=11
refuses "needs the proxy listener" --set ingress.enabled=true,config.proxy.listen=
refuses kubeVersion --kube-version 1.26.0

# Each value has its line in the chart's README.
for key in $(grep -oE '^[a-zA-Z]+:' "$chart/values.yaml" | tr -d :); do
  grep -q "\`$key" "$chart/README.md" || fail "$chart/README.md does not explain $key"
done

# What must hold in the rendered manifests.
# No pipe into grep -q: it ends early, and what writes to it fails by SIGPIPE.
has() { grep -qF -- "$3" <<<"$(part "$1" "$2")" || fail "ci/$1.yaml: $2 lacks $3"; }
lacks() { ! grep -qE -- "$3" <<<"$(part "$1" "$2")" || fail "ci/$1.yaml: $2 has $3"; }
has defaults hpa.yaml "kind: HorizontalPodAutoscaler"
has defaults redis.yaml "kind: StatefulSet"
# shellcheck disable=SC2016 # the variable is r8limiter's
has defaults configmap.yaml 'url: ${R8LIMITER_REDIS_URL}'
# What holds while Redis fails comes through, and a value of ours wins.
for each in "on_store_error: local" "replicas: 2" "ready_when_degraded: true"; do has defaults configmap.yaml "$each"; done
for each in "on_store_error: deny" "replicas: 5" "ready_when_degraded: false"; do has everything configmap.yaml "$each"; done
# A pod has time for the drain, and some more.
has defaults deployment.yaml "terminationGracePeriodSeconds: 40"
has everything deployment.yaml "terminationGracePeriodSeconds: 85"
has control-only deployment.yaml "terminationGracePeriodSeconds: 31"
has everything hpa.yaml "name: requests_per_second"
has everything monitoring.yaml "replacement: limits-r8limiter"
has everything redis.yaml "imagePullSecrets:"
has everything service.yaml "externalTrafficPolicy: Local"
has external deployment.yaml "{name: our-secrets, key: redis-url}"
lacks external hpa.yaml kind
lacks external secret.yaml kind
lacks external redis.yaml kind
lacks memory redis.yaml kind
lacks cluster redis.yaml kind
lacks cluster deployment.yaml R8LIMITER_REDIS_URL
lacks cluster configmap.yaml "url:"
has cluster configmap.yaml "mode: cluster"
has cluster deployment.yaml "mountPath: /etc/redis-tls"
has cluster deployment.yaml "secretName: redis-tls"
lacks memory serviceaccount.yaml kind
lacks memory deployment.yaml R8LIMITER_REDIS_URL
has tls deployment.yaml "{path: /readyz, port: control, scheme: HTTPS}"
has tls deployment.yaml '{name: proxy-tls, secret: {secretName: "api-tls", defaultMode: 0440}}'
has tls deployment.yaml "{name: control-tls, mountPath: /etc/r8limiter-tls/control, readOnly: true}"
has tls configmap.yaml "cert_file: /etc/r8limiter-tls/proxy/tls.crt"
has tls configmap.yaml 'min_version: "1.3"'
has tls monitoring.yaml "scheme: https"
has tls tests/ready.yaml '"https://'
lacks defaults deployment.yaml "HTTPS|-tls"
lacks defaults monitoring.yaml "scheme: https"
has client-certificates deployment.yaml "tcpSocket: {port: control}"
lacks client-certificates deployment.yaml httpGet
lacks client-certificates tests/ready.yaml kind
has control-only configmap.yaml "timeout: 20ms"
has control-only configmap.yaml "capacity: 1000000000"
has control-only deployment.yaml "containerPort: 9000"
has control-only deployment.yaml "{name: our-redis, key: redis-url}"
lacks control-only deployment.yaml "name: proxy"
lacks control-only secret.yaml "redis"
lacks control-only service.yaml "name: proxy"
# Two images, both to be had by anyone, both named by tag or digest.
images=$(sed -n 's/^ *image: //p' "$dir"/*.yaml | sort -u)
grep -vE '^(ghcr\.io/r8limiter/r8limiter|redis):[0-9][^ ]*$' <<<"$images" && fail "other images than r8limiter's and Redis'"
# Every pod is restricted.
for name in defaults everything control-only memory; do
  for pod in deployment.yaml redis.yaml tests/ready.yaml; do
    [ "$name-$pod" != memory-redis.yaml ] || continue
    for each in "runAsNonRoot: true" "seccompProfile: {type: RuntimeDefault}" "readOnlyRootFilesystem: true" \
      "allowPrivilegeEscalation: false" "drop: [ALL]" "automountServiceAccountToken: false"; do
      has "$name" "$pod" "$each"
    done
  done
done
# The pod of helm test reaches the control listener whoever else may.
grep -q "component: test" <<<"$(part everything networkpolicy.yaml | awk '/egress:/{over = 1} /port: control/{on = 1} on && !over')" ||
  fail "everything: helm test can't reach the control listener"
[ "$(part everything monitoring.yaml | below r8limiter.json)" = "$(cat "$chart/files/r8limiter.json")" ] || fail "the dashboard is not rendered as it is"
[ "$(part everything monitoring.yaml | awk '/^kind: /{rule = $2 == "PrometheusRule"} /^# Source/{on = 0} on {print substr($0, 3)} rule && /^spec:/{on = 1}')" = \
  "$(cat "$chart/files/rules.yaml")" ] || fail "the rules are not rendered as they are"

# Other secrets and configurations start new pods, another chart leaves Redis running.
changes() {
  local template=$1
  shift
  helm template limits "${asked[@]}" "$chart" --show-only "templates/$template" "$@" | sed -n '/^  template:/,/^    spec:/p'
}
[ "$(changes deployment.yaml)" = "$(changes deployment.yaml)" ] || fail "an upgrade without a change starts new pods"
for value in redis.bundled.password=other adminToken=fedcba9876543210 redis.keyPrefix=other config.proxy.listen=:8081 config.log.format=console; do
  [ "$(changes deployment.yaml)" != "$(changes deployment.yaml --set $value)" ] || fail "another $value starts no new pods"
done
# What running pods take in by themselves starts none, unless that is wished for: the
# ConfigMap is mounted as a directory, of which a change arrives.
live=config.limiter.default.capacity=11
[ "$(changes deployment.yaml)" = "$(changes deployment.yaml --set $live)" ] || fail "another $live starts new pods"
[ "$(changes deployment.yaml --set restartOnConfigChange=true)" != "$(changes deployment.yaml --set restartOnConfigChange=true --set $live)" ] ||
  fail "another $live starts no new pods although that is wished for"
! grep -rn subPath "$chart/templates" || fail "what is mounted by subPath never changes in a running pod"
cp -r "$chart" "$dir/newer"
sed -i 's/^version: .*/version: 99.0.0/; s/^appVersion: .*/appVersion: "99.0.0"/' "$dir/newer/Chart.yaml"
[ "$(changes redis.yaml --set redis.bundled.password=p)" = "$(chart=$dir/newer changes redis.yaml --set redis.bundled.password=p)" ] ||
  fail "another version of the chart restarts Redis"

# The bundled Redis as rendered, with a password that needs quoting, and a gateway
# with the rendered configuration and URL, on free ports of the loopback interface.
part everything secret.yaml | below redis.conf >"$dir/redis.conf"
mkdir "$dir/data"
mapfile -t args < <(part everything redis.yaml | sed -n '/^ *args:/,/^ *securityContext:/s/^ *- //p' | tr -d '"' |
  sed "s|^/etc/redis|$dir|; s|^/data$|$dir/data|")
answers() { [ "$(redis-cli -p "$port" "$@" ping 2>/dev/null)" = PONG ]; }
ready=
for _ in 1 2 3 4 5; do
  port=$((20000 + RANDOM % 10000))
  redis-server "${args[@]}" --port "$port" --bind 127.0.0.1 >"$dir/redis.log" &
  redis=$!
  for _ in {1..50}; do
    kill -0 "$redis" 2>/dev/null || break
    if answers -a 'p4ss-w0rd+/@'; then ready=$redis; break 2; fi
    sleep 0.1
  done
done
[ -n "$ready" ] || fail "Redis does not start as rendered: $(cat "$dir/redis.log")"
started+=("$ready")
! answers || fail "Redis answers without its password"
redis() { redis-cli -p "$port" -a 'p4ss-w0rd+/@' "$@" 2>/dev/null; }
[ "$(redis config get maxmemory-policy | tail -1) $(redis config get appendonly | tail -1) $(redis config get appendfsync | tail -1)" = \
  "noeviction yes everysec" ] || fail "Redis evicts, or keeps nothing"
R8LIMITER_REDIS_URL=$(part everything secret.yaml | sed -n 's/^  redis-url: "\(.*\)"$/\1/p' | sed "s/@limits-r8limiter-redis:6379/@127.0.0.1:$port/")
sed 's/listen: .*/listen: 127.0.0.1:0/' "$dir/everything.config" >"$dir/gateway.config"
R8LIMITER_REDIS_URL=$R8LIMITER_REDIS_URL R8LIMITER_ADMIN_TOKEN=0123456789abcdef \
  "$dir/r8limiter" serve -config "$dir/gateway.config" 2>"$dir/gateway.log" &
started+=($!)
control=
for _ in {1..50}; do
  control=$(sed -n 's/.*"control":"\([^"]*\)".*/\1/p' "$dir/gateway.log")
  [ -z "$control" ] || break
  sleep 0.1
done
[ -n "$control" ] || fail "the gateway does not start as rendered: $(cat "$dir/gateway.log")"
"$dir/r8limiter" health -url "http://$control/readyz" || fail "the gateway is not ready: $(cat "$dir/gateway.log")"
# The gateway looks at its Redis by itself, by INFO as we do here, and would warn of
# what breaks a promise.
for looks in {0..50}; do
  calls=$(redis info commandstats | sed -n 's/^cmdstat_info:calls=\([0-9]*\).*/\1/p')
  [ "${calls:-0}" -le "$looks" ] || break
  sleep 0.1
done
[ "$looks" -lt 50 ] || fail "the gateway does not look at Redis"
curl -fsS "http://$control/metrics" >"$dir/metrics"
grep -q '^r8limiter_store_condition' "$dir/metrics" || fail "the gateway does not say how Redis is set up"
! grep '^r8limiter_store_condition.* 1$' "$dir/metrics" || fail "the bundled Redis is not as the gateway wants it: $(cat "$dir/gateway.log")"

helm package "$chart" --destination "$dir" >/dev/null
grep -q '"panels"' <<<"$(helm template limits "${asked[@]}" "$dir"/r8limiter-*.tgz --set grafanaDashboard.enabled=true)" || fail "the package lacks the dashboard"
echo "helm: ok"
