# One command each; CI runs the same ones.
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

.PHONY: run test test-faults test-deploy load soak lint staticcheck bench bench-store fuzz build redis frontproxies wiretools

run: ## serve config.example.yaml
	$(GO) run . -config config.example.yaml

# The allocation pins are built without the race detector, which makes
# sync.Pool forget: they get a run of their own.
# Packages take turns: tests of what a limit lets through in a time want the
# processors for themselves. All are built before, at once.
test: redis frontproxies ## every test, on real Redis, nginx and HAProxy
	$(GO) test -race -run '^$$' ./...
	$(GO) test -race -count=1 -p 1 ./...
	$(GO) test -count=1 -run 'Alloc' ./...

test-faults: redis wiretools ## every fault of Redis, of clients, upstreams and restarts against running gateways, deadlines to the letter: minutes, and wants the machine for itself
	FAULTS=all $(GO) test -count=1 -timeout 40m -p 1 -v -run '^Test(Faults|Wire)' . ./proxy

test-deploy: redis ## everything in deploy/ and loadtest/, for real; installs its pinned tools
	@set -e; for t in deploy/test/*.sh; do [ ! -x $$t ] || { echo "== $$t"; $$t; }; done

load: redis ## one k6 script: make load SCRIPT=smoke STORE=memory TARGET=proxy
	loadtest/run.sh $(or $(SCRIPT),smoke) $(or $(STORE),memory) $(or $(TARGET),proxy)

soak: redis ## a million users: what the statistics take
	SOAK_USERS=1000000 $(GO) test -count=1 -v -run TestStatisticsStaySmall ./limiter

redis: # and curl, with which the tests run the README's lines
	@command -v redis-server >/dev/null && command -v curl >/dev/null && exit 0; \
	echo "installing redis-server and curl from the distribution's packages"; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	{ $$sudo env RUNLEVEL=1 apt-get update -q && $$sudo env RUNLEVEL=1 apt-get install -y -q --no-install-recommends redis-server curl; } || \
	{ echo "redis-server is missing and could not be installed: install it (7.0 or later) and run make test again" >&2; exit 1; }

frontproxies: # that deploy/recipes are for
	@[ -x /usr/sbin/nginx ] && [ -x /usr/sbin/haproxy ] && exit 0; \
	echo "installing nginx and haproxy from the distribution's packages"; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	{ $$sudo env RUNLEVEL=1 apt-get update -q && $$sudo env RUNLEVEL=1 apt-get install -y -q --no-install-recommends nginx haproxy; } || \
	{ echo "nginx or haproxy is missing and could not be installed: install them and run make test again" >&2; exit 1; }

wiretools: # the load balancer and the attacker of the tests
	@[ -x /usr/sbin/haproxy ] && command -v slowhttptest >/dev/null && exit 0; \
	echo "installing haproxy and slowhttptest from the distribution's packages"; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	{ $$sudo env RUNLEVEL=1 apt-get update -q && $$sudo env RUNLEVEL=1 apt-get install -y -q --no-install-recommends haproxy slowhttptest; } || \
	{ echo "haproxy or slowhttptest is missing and could not be installed: install them and run make test-faults again" >&2; exit 1; }

lint:
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "not gofmt'd: $$out" >&2; exit 1; }
	$(GO) vet ./...
	$(GO) fix -diff ./...

staticcheck: ## needs the module proxy to serve honnef.co/go/tools
	$(GO) run honnef.co/go/tools/cmd/staticcheck@2026.2.2 ./...

bench: redis
	$(GO) test -run xxx -bench . -benchmem -cpu 1,2 ./...

bench-store: redis ## what a decision costs by one call each, coalesced, leased, denied; and beside nginx
	$(GO) test -run xxx -bench 'StoreWays' -benchtime 9x ./limiter
	loadtest/compare.sh 5 4
	$(GO) test -run xxx -bench 'Million' -benchtime 1x ./limiter

fuzz: ## a minute for each target
	@for pkg in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz); do \
	$(GO) test -run xxx -fuzz "^$$f$$" -fuzztime 60s -fuzzminimizetime 2s $$pkg || exit 1; done; done

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o r8limiter .
