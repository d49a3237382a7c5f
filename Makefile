# `make demo` and `make test` install what they lack, build once with one profile, and go.

.PHONY: demo build test check fmt

# Options for the demo: make demo ARGS="--reset"
ARGS =
target_dir = python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])'

demo: build
	@exec "$$(cargo metadata --format-version 1 --no-deps | $(target_dir))/debug/lorikeet" demo $(ARGS)

build:
	@scripts/setup
	@scripts/fetch-model >/dev/null
	cargo build --workspace

test:
	@scripts/setup --tests
	@scripts/fetch-model >/dev/null
	cargo build --workspace --all-targets
	cargo test --workspace

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

fmt:
	cargo fmt --all
