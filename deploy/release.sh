#!/usr/bin/env bash
# Builds what a release consists of: one archive a platform, and SHA256SUMS.
# The same commit, Go and version give the same bytes on any machine.
#
#   deploy/release.sh VERSION DIRECTORY      as v1.2.3 /tmp/release
#
# Needs Go and GNU tar; some minutes where nothing is compiled yet.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# = 2 ] || { echo "usage: deploy/release.sh VERSION DIRECTORY" >&2; exit 2; }
version=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
[ -z "$(ls -A "$out")" ] || { echo "$out is not empty" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022
when=@$(git log -1 --format=%ct)

for platform in linux/amd64 linux/arm64 darwin/arm64; do
  name=r8limiter_${version#v}_${platform/\//_}
  mkdir "$work/$name"
  CGO_ENABLED=0 GOOS=${platform%/*} GOARCH=${platform#*/} \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$version" -o "$work/$name/r8limiter" .
  install -m 644 LICENSE README.md config.example.yaml "$work/$name/"
  install -D -m 644 {.,"$work/$name"}/deploy/schema/config.schema.json
  case $platform in linux/*) install -m 644 deploy/systemd/r8limiter*.s* "$work/$name/" ;; esac
  # No names, times or order of this machine; gzip -n keeps its own out too.
  tar -C "$work" --sort=name --mtime="$when" --owner=0 --group=0 --numeric-owner -c "$name" |
    gzip -9n >"$out/$name.tar.gz"
done
(cd "$out" && sha256sum ./*.tar.gz | sed 's#\./##' >SHA256SUMS && sha256sum --check --quiet SHA256SUMS)
# This machine's own must run and know its version.
own=r8limiter_${version#v}_$(go env GOHOSTOS)_$(go env GOHOSTARCH)
[ ! -e "$out/$own.tar.gz" ] || [ "$("$work/$own/r8limiter" version)" = "r8limiter $version" ]
cat "$out/SHA256SUMS"
