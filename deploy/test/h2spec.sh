#!/usr/bin/env bash
# The proxy listener against h2spec, which knows what RFC 7540 and 7541 ask of a
# server; about 15 s. The cases in which golang.org/x/net differs on purpose are
# listed in proxy/h2spec_test.go; any other failure fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
source deploy/test/tools.sh
go_tool h2spec github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
go vet -tags h2spec ./proxy
go test -tags h2spec -count=1 -run '^TestHTTP2ConformsToH2spec$' ./proxy
