# Every pinned version and checksum of the set-up. The Makefile includes this file; nothing else names a version.
# Go modules are pinned by go.mod and go.sum, Rust crates by tokenizer/native/Cargo.lock.

# ONNX Runtime: the shared library inside the PyPI wheel. One fixed interpreter tag, so that the file and its
# checksum are the same whatever Python the machine has.
ORT_VERSION      := 1.32.0
ORT_PY_VERSION   := 3.12
ORT_PY_ABI       := cp312
ORT_PLATFORM_x86_64  := manylinux_2_28_x86_64
ORT_PLATFORM_aarch64 := manylinux_2_28_aarch64
ORT_SHA256_x86_64    := 99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8
ORT_SHA256_aarch64   := e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054

# The Go binding whose module carries the Rust tokenizers crate; must equal go.mod.
TOKENIZERS_MODULE := github.com/daulet/tokenizers
# tiktoken-rs replaces a git dependency of that crate, which cannot be fetched everywhere (0.12 does not compile with it).
TIKTOKEN_RS_VERSION := 0.7

# Python libraries that `make test-interop` reads our files with.
WEBDATASET_VERSION := 1.0.2
PYARROW_VERSION    := 26.0.1

# OpenAI's clients, which `make test-clients` talks to a server with.
OPENAI_PYTHON_VERSION := 3.57.0
OPENAI_NODE_VERSION   := 6.49.0

# Stand-ins for clouds that `make test-stores` runs.
FAKE_GCS_VERSION := v1.56.1
AZURITE_VERSION  := 3.37.0

# What `make test-api` makes requests with.
SCHEMATHESIS_VERSION  := 4.32.5
