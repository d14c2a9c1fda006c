# Drover. `make demo` and `make test` each do all of their own set-up.
SHELL := /bin/bash
GO ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

.DEFAULT_GOAL := build

.PHONY: build
build: ## bin/drover and the lab's guest
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/drover ./cmd/drover
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/drover-sheep ./lab/guest/sheep

.PHONY: deps
deps: ## the Debian packages that lab, tests and demo use (root)
	@scripts/deps.sh

.PHONY: demo
demo: deps build ## every method once, between three data centers on this machine
	@bin/drover lab demo

.PHONY: test
# The trials take as long as all the rest, so they begin first and the rest runs beside them. What build has compiled is
# not compiled again, which it would be with other flags.
test: deps build ## the whole test suite, lab included
	CGO_ENABLED=0 $(GO) test -trimpath -p 2 -timeout 40m ./lab/trial ./...

.PHONY: soak
soak: deps build ## twenty moves back and forth, fifty mixed ones, twenty under cuts, and the Debian guest under load and between networks
	$(GO) test -timeout 80m -count 1 ./executor -args -full
	$(GO) test -p 1 -timeout 150m -count 1 -parallel 1 -v ./lab/trial -args -soak
	bin/drover bench cuts

.PHONY: bench
bench: deps build ## the benchmarks, as tables
	bin/drover bench wanem
	bin/drover bench methods

.PHONY: generate
generate: deps ## api/droverv1 from api/proto
	api/generate.sh

.PHONY: check
check: bin/tools/staticcheck bin/tools/gofumpt ## format, vet, staticcheck, layers
	@out=$$(bin/tools/gofumpt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$\|\.connect\.go$$')); \
	  if [ -n "$$out" ]; then echo "not formatted (gofumpt -w):"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	bin/tools/staticcheck ./...
	$(GO) test -run 'TestLayers|TestPackageComments' .

bin/tools/staticcheck bin/tools/gofumpt: tools/go.mod
	@mkdir -p bin/tools
	cd tools && $(GO) build -o ../bin/tools/ honnef.co/go/tools/cmd/staticcheck mvdan.cc/gofumpt

.PHONY: dist
dist: ## a static binary with its checksum, in dist/
	@mkdir -p dist
	CGO_ENABLED=0 GOOS=linux GOARCH=amd64 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o dist/drover-linux-amd64 ./cmd/drover
	CGO_ENABLED=0 GOOS=linux GOARCH=amd64 $(GO) build -trimpath -ldflags '-s -w' -o dist/drover-sheep-linux-amd64 ./lab/guest/sheep
	cd dist && sha256sum drover-linux-amd64 drover-sheep-linux-amd64 > SHA256SUMS

.PHONY: clean
clean:
	rm -rf bin dist

.PHONY: help
help:
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'
