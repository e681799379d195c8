# glimpse: `make demo` builds everything and captions the sample pictures, `make test` runs the tests.
# Needs Go, a C compiler with C++ runtime, Rust's cargo and Python's pip. Everything lands in .deps/, bin/ and .cache/.
#
#   ORT_LIB=/path/libonnxruntime.so    use this ONNX Runtime instead of fetching one
#   TOKENIZERS_LIB=/path/libtokenizers.a    use this static library instead of building tokenizer/native

include versions.mk

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
CARGO ?= cargo
GO ?= go

DEPS := .deps
LIB := $(DEPS)/lib
BINDING := $(DEPS)/daulet
NATIVE := tokenizer/native

# The Go binding asks the linker for -ltokenizers; this is where it lies.
export CGO_ENABLED := 1
export CGO_LDFLAGS := -L$(CURDIR)/$(LIB)

ORT_SO := $(LIB)/libonnxruntime.so.$(ORT_VERSION)
TOKENIZERS_A := $(LIB)/libtokenizers.a
BINDING_VERSION := $(shell sed -n 's|^.*$(TOKENIZERS_MODULE) \(v[^ ]*\).*|\1|p' go.mod)
BINDING_STAMP := $(BINDING)/.copied-$(BINDING_VERSION)

# What the binary is made of, files that are embedded included; tests and their data are not.
GO_FILES = $(shell find . \( -name '.?*' -o -name testdata -o -name bin -o -name docs \) -prune -o -type f -not -name '*_test.go' \
    -not -name '*.md' -not -path './$(NATIVE)/*' -not -path './bench/*' -not -path './scripts/*' -not -name Makefile -print) $(NATIVE)/glimpse_native.h

.PHONY: all build deps demo test test-cuda test-browser test-queue test-stores test-interop served-models test-clients test-api soak lint fuzz-short native-test clean
all: build

# ---- set-up ----------------------------------------------------------------------------------------------------------

deps: $(ORT_SO) $(TOKENIZERS_A)

# Once, before anything is fetched.
$(DEPS)/.tools-checked:
	GO="$(GO)" CARGO="$(CARGO)" CC="$(CC)" PYTHON="$(PYTHON)" scripts/check-tools
	mkdir -p $(DEPS)
	touch $@

ifdef ORT_LIB
$(ORT_SO): $(ORT_LIB)
	mkdir -p $(LIB)
	install -m 755 $(ORT_LIB) $@.tmp
	mv $@.tmp $@
	ln -sf $(@F) $(LIB)/libonnxruntime.so.1
	ln -sf $(@F) $(LIB)/libonnxruntime.so
else
$(ORT_SO): versions.mk scripts/fetch-onnxruntime | $(DEPS)/.tools-checked
	PYTHON="$(PYTHON)" scripts/fetch-onnxruntime $(DEPS) "$(ORT_VERSION)" "$(ORT_PY_VERSION)" "$(ORT_PY_ABI)" \
	    "$(ORT_PLATFORM_$(shell uname -m))" "$(ORT_SHA256_$(shell uname -m))"
endif

ifdef TOKENIZERS_LIB
$(TOKENIZERS_A): $(TOKENIZERS_LIB)
	mkdir -p $(LIB)
	install -m 644 $(TOKENIZERS_LIB) $@
else
# The binding's Rust crate is in its Go module; copied because the module cache is read-only and two files need a patch.
$(BINDING_STAMP): versions.mk $(wildcard $(NATIVE)/patch-binding-*.sed) | $(DEPS)/.tools-checked
	$(GO) mod download $(TOKENIZERS_MODULE)
	rm -rf $(BINDING)
	mkdir -p $(BINDING)
	dir="$$($(GO) list -m -f '{{.Dir}}' $(TOKENIZERS_MODULE))"; \
	    cp -R "$$dir"/crates/tokenizers/src "$$dir"/crates/tokenizers/Cargo.toml "$$dir"/LICENSE $(BINDING)/
	chmod -R u+w $(BINDING)
	sed -e 's/@TIKTOKEN_RS_VERSION@/$(TIKTOKEN_RS_VERSION)/' $(NATIVE)/patch-binding-manifest.sed > $(BINDING)/manifest.sed
	scripts/patch $(BINDING)/manifest.sed $(BINDING)/Cargo.toml
	scripts/patch $(NATIVE)/patch-binding-source.sed $(BINDING)/src/lib.rs
	touch $@

$(TOKENIZERS_A): $(BINDING_STAMP) $(NATIVE)/Cargo.toml $(NATIVE)/Cargo.lock $(wildcard $(NATIVE)/src/*.rs)
	$(CARGO) build --release --locked --manifest-path $(NATIVE)/Cargo.toml --target-dir $(DEPS)/cargo
	mkdir -p $(LIB)
	cp $(DEPS)/cargo/release/libtokenizers.a $@
	$(GO) clean -testcache  # cached results do not depend on this file in Go's eyes
endif

# ---- build and use ---------------------------------------------------------------------------------------------------

build: bin/glimpse

# Removed first: Go does not look into libtokenizers.a and would find an old binary up to date.
bin/glimpse: $(GO_FILES) $(ORT_SO) $(TOKENIZERS_A)
	rm -f $@
	$(GO) build -o $@ ./cmd/glimpse

# Converts the sample checkpoints into .cache/ and shows each at work beside the truth.
demo: bin/glimpse
	$(GO) run ./bench/demo -glimpse bin/glimpse

# ---- checks ----------------------------------------------------------------------------------------------------------

test: deps
	$(GO) vet ./...
	$(GO) test ./...

# The queue's proof at its whole size: runs killed 50 times a format; 2,000 pictures, workers killed, the server restarted; a node of
# three lost; and 1,000 workers on one server.
test-queue: deps
	GLIMPSE_KILLS=50 $(GO) test -count=1 -v -timeout 20m -run '^TestKilledAtRandomMoments$$' ./cmd/glimpse
	GLIMPSE_QUEUE_PICTURES=2000 $(GO) test -count=1 -v -timeout 20m -run '^TestQueueLosesNothing$$' ./cmd/glimpse
	GLIMPSE_QUEUE_CLUSTER=1 $(GO) test -count=1 -v -timeout 5m -run '^TestClusterOfThreeLosesANode$$' ./batch/queue
	GLIMPSE_QUEUE_WORKERS=1000 $(GO) test -count=1 -v -timeout 20m -run '^TestManyWorkers$$' ./batch/queue

# Object stores: S3 as in `make test`, Google Cloud Storage and Azure Blob Storage with programs that stand in for them (needs npm).
STORES := .cache/stores
$(STORES)/fake-gcs-server: versions.mk
	mkdir -p $(STORES)
	env -u CGO_LDFLAGS GOBIN=$(CURDIR)/$(STORES) GOFLAGS= $(GO) install github.com/fsouza/fake-gcs-server@$(FAKE_GCS_VERSION)

$(STORES)/node_modules/.bin/azurite-blob: versions.mk
	mkdir -p $(STORES)
	npm install --prefix $(STORES) --no-audit --no-fund --silent azurite@$(AZURITE_VERSION)
	touch $@

test-stores: deps $(STORES)/fake-gcs-server $(STORES)/node_modules/.bin/azurite-blob
	GLIMPSE_FAKE_GCS=$(CURDIR)/$(STORES)/fake-gcs-server GLIMPSE_AZURITE=$(CURDIR)/$(STORES)/node_modules/.bin/azurite-blob \
	    $(GO) test -count=1 -v -timeout 20m -run '^(TestS3|TestGoogleCloudStorage|TestAzureBlobStorage)$$' ./cmd/glimpse

# Needs a GPU and, in GLIMPSE_ORT_LIB, ONNX Runtime's GPU package: the suite of a device's memory and sessions, and the golden sets.
test-cuda: deps
	GLIMPSE_TEST_CUDA=1 $(GO) test -count=1 ./graphs ./engine/verify -run CUDA

# The playground in a real Chromium (needs the program `chromium`); screenshots go to .cache/screenshots.
test-browser: deps
	SCREENSHOTS=$(CURDIR)/.cache/screenshots $(GO) test -count=1 -tags browser ./server/browser

# Python's webdataset and pyarrow read what we write, and we what they write.
test-interop: bin/glimpse
	mkdir -p .cache
	bin/glimpse convert testdata/models/scenes-llava -o .cache/interop --force
	PYTHON="$(PYTHON)" scripts/test-interop bin/glimpse .cache/interop testdata/pictures "$(WEBDATASET_VERSION)" "$(PYARROW_VERSION)"

# The models that other programs talk to over HTTP: one that answers and one that compares.
served-models: bin/glimpse
	mkdir -p .cache/clients
	bin/glimpse convert testdata/models/scenes-llava -o .cache/clients/scenes-llava --precision fp32 --force
	bin/glimpse convert testdata/models/scenes-blip2-itm -o .cache/clients/scenes-blip2-itm --precision fp32 --force

# OpenAI's own clients for Python and Node talk to served models (needs pip and npm).
test-clients: served-models
	PYTHON="$(PYTHON)" scripts/test-clients bin/glimpse .cache/clients testdata/pictures "$(OPENAI_PYTHON_VERSION)" "$(OPENAI_NODE_VERSION)"

# 2,000 requests made out of /openapi.json, right ones and wrong ones (needs pip).
test-api: served-models
	PYTHON="$(PYTHON)" scripts/test-api bin/glimpse .cache/clients testdata/pictures/scene-01.png "$(SCHEMATHESIS_VERSION)" 2000

lint: deps
	@unformatted="$$(gofmt -l $$(find . -name '*.go' -not -path './.*'))"; \
	    if [ -n "$$unformatted" ]; then echo "gofmt these files:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) test -count=1 -run '^TestArchitecture' .

# Every fuzz target of every package for a few seconds each.
FUZZTIME ?= 10s
fuzz-short: deps
	for package in $$($(GO) list ./...); do \
	    for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
	        $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
	    done; \
	done

# 200 streaming clients for SOAK seconds, with the worker killed under them; each checks its answers against those alone.
SOAK ?= 60
soak: deps
	GLIMPSE_SOAK=$(SOAK) $(GO) test -count=1 -v -timeout 20m -run '^TestServeUnderLoad$$' ./cmd/glimpse

# The Rust side's own tests.
native-test: $(BINDING_STAMP)
	$(CARGO) test --release --locked --manifest-path $(NATIVE)/Cargo.toml --target-dir $(DEPS)/cargo

clean:
	rm -rf bin .cache
