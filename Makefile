# make demo   plan and train the quickstart on this machine, about 3 minutes beside the build
# make test   format, lints, licences, unit and process tests
# make test-real   what needs a browser (later: PyTorch, QEMU, Slurm, sshd)
# make bench  the figures of docs/performance.md
.PHONY: help setup build text demo test lint test-real bench clean
help:
	@sed -n 's/^# make/make/p' Makefile

setup:
	@scripts/setup

build: setup
	cargo build --workspace --bins

text:
	@scripts/quickstart-text

demo: build text
	target/debug/narrows train configs/quickstart/run.toml --fresh
	target/debug/narrows report runs/quickstart --html runs/quickstart/report.html

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@scripts/licences

test: lint text
	cargo test --workspace

test-real: build text
	tests/real/run

bench: setup text
	benches/all

clean:
	cargo clean
	rm -rf .deps data runs
