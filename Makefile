# Commands for developers. `make` lists them.
SHELL := bash
.DEFAULT_GOAL := help

BROKER ?= embedded
FUZZTIME ?= 30s
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
ALL := postgres kafka rabbitmq

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The tag grpcnotrace leaves out gRPC pages that nobody uses. Their templates call methods
# by name, so the linker would keep all methods of all types, 10 MB of them.
.PHONY: build
build: ## Build bin/millrace
	go build -trimpath -tags grpcnotrace -ldflags "-X main.version=$(VERSION)" -o bin/millrace ./cmd/millrace

.PHONY: run-local
run-local: build ## Run the service; BROKER=embedded, kafka, rabbitmq or multi (both)
ifeq ($(BROKER),embedded)
	@exec bin/millrace dev
else ifeq ($(BROKER),multi)
	@scripts/services.sh up run kafka rabbitmq
	@set -a && . .local/run/env && MILLRACE_LOG__FORMAT=text exec bin/millrace dev --config configs/multi.yaml
else
	@scripts/services.sh up run $(BROKER)
	@set -a && . .local/run/env && exec bin/millrace dev --broker $(BROKER)
endif

.PHONY: stop-local
stop-local: ## Stop the brokers that run-local started
	@scripts/services.sh down run kafka rabbitmq

.PHONY: test-db
test-db: ## Start the Postgres that most tests need
	@scripts/services.sh up test postgres

.PHONY: services
services: ## Start all servers that the tests need: Postgres, Kafka, RabbitMQ; install PgBouncer
	@scripts/services.sh up test $(ALL)
	@scripts/pgbouncer.sh install

.PHONY: services-down
services-down: ## Stop the servers for the tests and the benchmark
	@scripts/services.sh down test $(ALL)
	@scripts/services.sh down bench $(ALL)

.PHONY: test
test: verify docs-test services bin/proof ## Check everything and run all tests, with the race detector
	@. .local/test/env && scripts/engine-alone.sh -race -parallel 4 -timeout 10m
	@. .local/test/env && go test -race -parallel 4 -timeout 15m -skip '^TestStories$$/^kafka$$|^TestBrowser' $$(go list ./... | grep -v /internal/engine)
	@scripts/simulate.sh -seeds 200
	@go -C cmd/bench test ./...
	@. .local/test/env && go -C cmd/proof test -timeout 5m ./...
	@bin/proof chaos -broker embedded -seed 1 -duration 15s -replicas 2
	@bin/proof crash -short -broker embedded

.PHONY: engine-alone
engine-alone: services ## Test the engine in a copy of the repository without the shop
	@. .local/test/env && scripts/engine-alone.sh -skip Restart

.PHONY: stories
stories: services ## Run the operator stories on the embedded broker and on Kafka
	@. .local/test/env && go test -count=1 -v -run TestStories ./cmd/millrace

.PHONY: console-test
console-test: services ## Test the console in Chromium; writes a picture of each screen to .local/console
	@scripts/chromium.sh
	@. .local/test/env && go test -count=1 -timeout 10m -v -run '^TestBrowser' ./internal/console

.PHONY: console-pictures
console-pictures: services ## Refresh the pictures of the console in docs/images, from a run of the tests
	@scripts/chromium.sh
	@. .local/test/env && MILLRACE_TEST_PICTURES=1 go test -count=1 -timeout 10m -run '^TestBrowserScreens' ./internal/console

.PHONY: console-budget
console-budget: ## Measure the size and the time of each screen of the console with 1,000,000 orders and 10,000 failures
	@scripts/services.sh up test postgres
	@. .local/test/env && go -C cmd/bench run . console

.PHONY: test-pgbouncer
test-pgbouncer: services ## Run the operator stories with the pool behind PgBouncer in transaction mode
	@. .local/test/env && MILLRACE_TEST_SHARED_SESSIONS=1 go test -count=1 -v -run TestStories ./cmd/millrace

.PHONY: test-postgres-versions
test-postgres-versions: services ## Run the tests that use Postgres most on Postgres 16, 17 and 18
	@. .local/test/env && scripts/postgres-versions.sh 16 17 18

.PHONY: docs-test
docs-test: ## Check the AsyncAPI and OpenAPI documents with @asyncapi/parser and Spectral; needs Node
	@scripts/docs-test.sh

.PHONY: fmt
fmt: ## Format the code
	gofmt -w .

.PHONY: generate
generate: ## Write the generated files
	scripts/templ.sh
	go tool wire .
	scripts/states.sh
	scripts/metrics.sh
	scripts/scaling.sh
	go run ./cmd/millrace docs schemas --dir docs/schemas

.PHONY: lint
lint: ## Run the linters
	go vet ./...
	go -C cmd/bench vet ./...
	go -C cmd/proof vet ./...
	go tool -modfile=tools/go.mod golangci-lint run --allow-parallel-runners ./...
	go -C cmd/bench tool -modfile=../../tools/go.mod golangci-lint run --allow-parallel-runners ./...
	go -C cmd/proof tool -modfile=../../tools/go.mod golangci-lint run --allow-parallel-runners ./...

.PHONY: verify
verify: lint ## Check formatting, linters, generated files and go.mod
	@test -z "$$(gofmt -l .)" || { echo "not formatted (run make fmt):"; gofmt -l .; exit 1; }
	@scripts/templ.sh --check
	@go tool wire diff . || { echo "wire_gen.go is stale: run make generate"; exit 1; }
	@scripts/states.sh --check
	@scripts/metrics.sh --check
	@scripts/scaling.sh --check
	@go mod tidy -diff
	@go -C cmd/bench mod tidy -diff
	@go -C cmd/proof mod tidy -diff
	@go -C deployments mod tidy -diff

# tools/prometheus is a separate module, because Prometheus has many dependencies. The
# first run builds promtool, which takes a few minutes.
.PHONY: alerts-test
alerts-test: ## Test the alerts and the scrape configuration with promtool, and the queries of the alerts and the dashboard
	go -C tools/prometheus tool promtool check config $(CURDIR)/deployments/prometheus/prometheus.yaml
	go -C tools/prometheus tool promtool check rules $(CURDIR)/deployments/prometheus/alerts.yaml
	go -C tools/prometheus tool promtool test rules $(CURDIR)/deployments/prometheus/alerts_test.yaml
	go -C tools/prometheus test ./...

# deployments is a separate module, because the Kubernetes types have many dependencies.
.PHONY: manifests-test
manifests-test: ## Test the Kubernetes manifests; the first run takes minutes
	go -C deployments test ./...

.PHONY: simulate
simulate: ## Simulate SEEDS schedules of faults on a clock of its own, 10000 by default, or replay one: SEED=4711
	@scripts/simulate.sh $(if $(SEED),-seed $(SEED) -test.v,-seeds $(or $(SEEDS),10000))

.PHONY: fuzz
fuzz: ## Fuzz each decoder, and the whole path of messages, for FUZZTIME
	@scripts/fuzz.sh run $(FUZZTIME)

# cmd/proof is a separate module, so that the product does not depend on it.
.PHONY: bin/proof
bin/proof: build
	@go -C cmd/proof build -o ../../bin/proof .

.PHONY: soak
soak: bin/proof ## Kill and rebalance replicas under load, on Kafka and RabbitMQ; SOAK passes flags
	@bin/proof soak -broker kafka $(SOAK) && bin/proof soak -broker rabbitmq $(SOAK)

.PHONY: chaos
chaos: bin/proof ## Fail everything around replicas, as SEED decides, for DURATION on BROKER, then check all invariants; CHAOS passes flags
	@bin/proof chaos -broker $(BROKER) $(if $(SEED),-seed $(SEED)) $(if $(DURATION),-duration $(DURATION)) $(CHAOS)

.PHONY: crash
crash: bin/proof ## Kill the service at each crash point, and again as it recovers, on each broker; CRASH passes flags
	@bin/proof crash -pairs -report docs/crash-points.md $(CRASH)

.PHONY: mutations
mutations: bin/proof test-db ## Put bugs into the service, and show that the crash points and tests find each; MUTATIONS passes flags
	@. .local/test/env && bin/proof mutations -report docs/mutations.md $(MUTATIONS)

.PHONY: upgrade-test
upgrade-test: bin/proof ## Upgrade replicas of the previous release under load, and restart those of this one, on the embedded broker and Kafka; SOAK passes flags
	@scripts/upgrade.sh embedded kafka -- $(SOAK)

# cmd/bench is a separate module, so that the product does not depend on it.
.PHONY: bin/bench
bin/bench:
	@scripts/services.sh up bench $(ALL)
	@go -C cmd/bench build -o ../../bin/bench .

.PHONY: bench
bench: bin/bench ## Measure throughput, latency and memory against a naive service, FastStream and SQL alone; ONLY=REGEXP selects scenarios
	@. .local/bench/env && bin/bench -only '$(ONLY)'

.PHONY: bench-full
bench-full: bin/bench ## Also measure replicas, ten minutes of full load, old databases, rebuilds and audits; takes about an hour and a half
	@. .local/bench/env && bin/bench -full

.PHONY: endure
endure: bin/bench ## Run at 70 % of the capacity for DURATION, then at twice the capacity; fails if memory, connections, tables or latency grow
	@. .local/bench/env && bin/bench -endure $(or $(DURATION),1h) -broker $(BROKER)

.PHONY: image
image: ## Build the container image, with Docker or Podman, and an image file for each architecture
	@scripts/image.sh build $(VERSION)

.PHONY: image-test
image-test: image ## Run the image read-only in its own network, as root on Linux
	@scripts/services.sh up test postgres
	@. .local/test/env && scripts/image.sh test $(VERSION)

.PHONY: release
release: ## Build the archives of a release into dist; VERSION names it
	go run ./scripts/release -version $(VERSION) -time $$(git log -1 --format=%ct)

.PHONY: release-test
release-test: ## Check that two builds of a release are the same, and that the archive for this machine works
	@scripts/release-test.sh

.PHONY: clean
clean: services-down stop-local ## Stop all servers and delete build results and local data
	rm -rf bin dist .local
