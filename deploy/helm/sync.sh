#!/usr/bin/env bash
# Copies the dashboard and the rules into the chart, which can only read what
# lies in it. deploy/test/helm.sh fails where a copy is old.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p r8limiter/files
cp ../grafana/r8limiter.json ../prometheus/rules.yaml r8limiter/files/
