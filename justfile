# The recipes that CI runs, and those that people want.

# Everything that CI checks.
ci:
    .ci/run

# The whole way of a delivery on this machine.
dev *ARGS:
    cargo run --release -- dev {{ARGS}}

test *ARGS:
    cargo test {{ARGS}}

lint:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    cargo clippy --no-default-features --lib -- -D warnings

# Needs cargo-deny; advisories need the network.
deny:
    cargo deny check
