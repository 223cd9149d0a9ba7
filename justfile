# The recipes that CI runs, and those that people want.

# Everything that CI checks.
ci:
    .ci/run

# The whole way of a delivery on this machine.
dev *ARGS:
    cargo run --release -- dev {{ARGS}}

test *ARGS:
    cargo test --locked {{ARGS}}

lint:
    cargo fmt --check
    cargo clippy --locked --all-targets -- -D warnings
    cargo clippy --locked --no-default-features --lib -- -D warnings

# Needs cargo-deny.
deny:
    cargo deny --locked --all-features check bans licenses sources

# Also known vulnerabilities, for which cargo-deny fetches its database.
advisories:
    cargo deny --locked --all-features check
