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
    cargo clippy --locked --all-targets --all-features -- -D warnings
    cargo clippy --locked --no-default-features --lib -- -D warnings

# The alerts: sound, and each firing when it should and only then. Needs promtool.
alerts:
    promtool check rules deploy/prometheus/rules.yml
    promtool test rules deploy/prometheus/rules_test.yml

# Needs cargo-deny.
deny:
    cargo deny --locked --all-features check bans licenses sources

# Also known vulnerabilities, for which cargo-deny fetches its database.
advisories:
    cargo deny --locked --all-features check

# Needs a nightly compiler and cargo-fuzz; see fuzz/README.md.
fuzz TARGET="target_and_guard verify registration envelope_json" SECONDS="300":
    for target in {{TARGET}}; do \
        mkdir -p fuzz/corpus/$target && \
        cargo +nightly fuzz run --sanitizer none $target fuzz/corpus/$target fuzz/seeds/$target -- \
            -max_total_time={{SECONDS}} -max_len=4096 -dict=fuzz/dictionaries/$target.dict || exit 1; \
    done

# What docs/metrics.md says of the code, after a change to src/metrics.rs.
reference:
    UPDATE_DOCS=1 cargo test --locked --test it metrics::the_reference
    cargo test --locked --test it reference::write -- --ignored

# Figures and their yardsticks: `just bench --bench system -- drain`, `just bench --bench signing`.
# All of `system` takes an hour; with graphile-worker beside it after `just bench-peers`.
bench *ARGS:
    BENCH_PEERS=$PWD/target/peers cargo bench --locked {{ARGS}}

# The peer that `just bench` measures beside us. Needs Node.js.
bench-peers:
    mkdir -p target/peers
    cp benches/system/peer/* target/peers/
    npm install --prefix target/peers --no-audit --no-fund

# The charts of docs/performance.md, from its tables.
charts:
    cargo bench --locked --bench system -- charts docs

# Draws docs/dashboard.svg from three minutes of load. Needs prometheus.
dashboard:
    cargo test --locked --test it prometheus::picture -- --ignored

# The page on the admin listener as a browser shows it; docs/page.png is one of them.
pictures DIRECTORY:
    PAGE_PICTURES={{DIRECTORY}} cargo test --locked --test it page::pictures -- --ignored

# Everything breaks, by seed: SEEDS runs with SECONDS of faults each, and one report.
chaos SEEDS="1..21" SECONDS="30":
    TASKBELL_CHAOS_SEEDS={{SEEDS}} TASKBELL_CHAOS_SECONDS={{SECONDS}} \
        cargo test --locked --release --test chaos -- --ignored --nocapture

# A package for Debian, in target/debian. Needs cargo-deb.
deb:
    cargo build --locked --profile dist --bin taskbell
    rm -rf target/package && mkdir -p target/package
    target/dist/taskbell man target/package/man
    target/dist/taskbell completions bash > target/package/taskbell.bash
    target/dist/taskbell completions zsh > target/package/_taskbell
    target/dist/taskbell completions fish > target/package/taskbell.fish
    cargo deb --locked --no-build --profile dist

# The image. Needs Docker or Podman.
image TAG="taskbell:latest":
    docker build --tag {{TAG}} .
