#!/usr/bin/env bash
# The Helm chart: lint, render with every file of ci/, refuse bad values, check
# the manifests against Kubernetes' own schemas and kube-score, the rendered
# configurations with `r8limiter check`, and package it. Needs Go; installs its
# tools, which takes some minutes the first time and about 20 s afterwards.
set -euo pipefail
cd "$(dirname "$0")/../.."
source deploy/test/tools.sh
go_tool helm helm.sh/helm/v3/cmd/helm@v3.22.0
go_tool kubeconform github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
go_tool kube-score github.com/zegl/kube-score/cmd/kube-score@v1.20.0
kubernetes=v1.37.2
chart=deploy/helm/r8limiter
# A helm built from its module takes itself for one of Kubernetes 1.20.
asked=(--kube-version "${kubernetes#v}")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

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

go build -o "$dir/r8limiter" .
for values in "$chart"/ci/*.yaml; do
  name=$(basename "$values" .yaml)
  echo "== $name"
  helm lint --strict --quiet "${asked[@]}" "$chart" --values "$values"
  helm template limits "${asked[@]}" "$chart" --namespace edge --values "$values" >"$dir/$name.yaml"
  kubeconform -strict -summary -schema-location "$schemas/{{.ResourceKind}}{{.KindSuffix}}.json" \
    -skip ServiceMonitor,PrometheusRule "$dir/$name.yaml"
  # Off: Always pulling a fixed tag; what many replicas need, for the one Redis.
  kube-score score --output-format ci \
    --ignore-test container-image-pull-policy \
    --ignore-test statefulset-has-poddisruptionbudget \
    --ignore-test statefulset-has-host-podantiaffinity \
    "$dir/$name.yaml" >"$dir/score" || { grep CRITICAL "$dir/score"; fail "kube-score: $name"; }
  # The configuration that the pods would read.
  helm template limits "${asked[@]}" "$chart" --values "$values" --show-only templates/configmap.yaml |
    sed '1,/^  config.yaml: |/d; s/^    //' >"$dir/config.yaml"
  R8LIMITER_REDIS_URL=redis://127.0.0.1:6379/0 R8LIMITER_ADMIN_TOKEN=0123456789abcdef "$dir/r8limiter" check -config "$dir/config.yaml"
done

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
refuses terminationGracePeriodSeconds --set terminationGracePeriodSeconds=10
refuses limits --set config.limits.x=1
refuses pullPolicy --set image.pullPolicy=Sometimes

# Each value has its line in the chart's README.
for key in $(grep -oE '^[a-zA-Z]+:' "$chart/values.yaml" | tr -d :); do
  grep -q "\`$key" "$chart/README.md" || fail "$chart/README.md does not explain $key"
done

# What must hold in the rendered manifests.
has() { grep -qF "$2" "$dir/$1.yaml" || fail "$1: no $2"; }
has defaults "kind: HorizontalPodAutoscaler"
has defaults "kind: StatefulSet"
# shellcheck disable=SC2016 # the variable is r8limiter's
has defaults 'url: ${R8LIMITER_REDIS_URL}'
has defaults "readOnlyRootFilesystem: true"
has external "name: our-secrets"
has everything "kind: ServiceMonitor"
has everything "redis://:p4ss-w0rd%2B%2F%40@limits-r8limiter-redis:6379/0"
! grep -q "kind: HorizontalPodAutoscaler" "$dir/external.yaml" || fail "external: an HPA"
! grep -qE "kind: (StatefulSet|ServiceAccount)|R8LIMITER_REDIS_URL" "$dir/memory.yaml" || fail "memory: a Redis or an account"
! grep -rqE "bitnami|quay.io/bitnami" "$chart" --include=*.yaml || fail "an image that is not served freely"

helm package "$chart" --destination "$dir" >/dev/null
helm template limits "${asked[@]}" "$dir"/r8limiter-*.tgz --set grafanaDashboard.enabled=true | grep -q '"panels"' || fail "the package lacks the dashboard"
echo "helm: ok"
