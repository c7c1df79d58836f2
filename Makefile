# Everything here installs what it needs by itself. `make help` lists the targets.
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -s -w -X main.version=$(VERSION)
PACKAGES = ./...
# Executions, not time: with a time, go test -fuzz may fail at its very end
# without a finding (go.dev/issue/75804, mended in Go 1.27).
FUZZ     ?= 200000x
FUZZ_CONVERSATIONS ?= 2000x
SOAK    ?= 1000
# Modules of their own, since they need what the product does not.
NESTED   = examples/grpc tests/deploy tests/bench
# One package after the other: beside others a test of takeovers under load
# tells of the machine, not of the program.
SERIAL   = -p 1
# Never from the cache, which knows nothing of the binaries and images that
# tests build.
FRESH    = -count=1
# The race detector needs a C compiler.
RACE    ?= $(if $(shell command -v $$($(GO) env CC) 2>/dev/null),-race)

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

.PHONY: build
build: ## build bin/handoverd, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/handoverd ./cmd/handoverd

.PHONY: run
run: ## watch a server being replaced under load (about 15 seconds)
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/handoverd ./internal/demo
	@bin/demo -binary bin/handoverd

.PHONY: test
test: ## all tests, with the race detector if there is a C compiler
	$(GO) test $(RACE) $(SERIAL) $(FRESH) -timeout 20m $(PACKAGES)
	@set -e; for m in $(NESTED); do (cd $$m && $(GO) test $(RACE) $(SERIAL) $(FRESH) -timeout 15m ./...); done

.PHONY: short
short: ## the quick tests
	$(GO) test $(RACE) $(SERIAL) $(FRESH) -short -timeout 10m $(PACKAGES)
	@set -e; for m in $(NESTED); do (cd $$m && $(GO) test $(RACE) -short -timeout 10m ./...); done

.PHONY: lint
lint: ## formatting, vet on three systems, staticcheck
	@out=$$(gofmt -l .); test -z "$$out" || { echo "gofmt these files:"; echo "$$out"; exit 1; }
	$(GO) vet $(PACKAGES)
	GOOS=darwin $(GO) vet $(PACKAGES)
	GOOS=windows $(GO) vet $(PACKAGES)
	$(GO) tool staticcheck $(PACKAGES)
	@set -e; for m in $(NESTED); do (cd $$m && $(GO) vet ./... && $(GO) tool -modfile=$(CURDIR)/go.mod staticcheck ./...); done

.PHONY: fuzz
fuzz: ## each fuzz test FUZZ times, whole conversations FUZZ_CONVERSATIONS times
	@set -e; for package in $$($(GO) list $(PACKAGES)); do \
	  for name in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
	    case $$name in FuzzAgainst*) n=$(FUZZ_CONVERSATIONS) ;; *) n=$(FUZZ) ;; esac; \
	    echo "$$package $$name $$n"; \
	    $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $$n $$package; \
	  done; \
	done

.PHONY: soak
soak: ## SOAK takeovers (1000) under each kind of load, deaths, chains: half an hour
	$(GO) test ./tests/e2e -run '^TestSoak$$' -soak $(SOAK) -timeout 0 -v
	$(GO) test ./tests/e2e -run 'AnyMoment|ChainOf|StoppedIn' -soak $(SOAK) -timeout 0 -v

.PHONY: faults
faults: ## every fault at every step of a takeover; writes docs/faults.md (some minutes)
	$(GO) test ./tests/faults -run '^TestMatrix$$' -matrix $(CURDIR)/docs/faults.md -timeout 0 -v

.PHONY: bench
bench: ## side by side with other ways to do it; writes docs/benchmarks.md (a quarter of an hour)
	cd tests/bench && $(GO) run . -o ../../docs

.PHONY: hotpaths
hotpaths: ## go test -bench of the hot paths
	$(GO) test -run '^$$' -bench . ./scm ./handover ./server

.PHONY: image
image: ## the container image handoverd:dev, from scratch around the static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o dist/handoverd ./cmd/handoverd
	docker build --quiet --tag handoverd:dev .

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
