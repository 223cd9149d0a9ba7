//! The whole of it under load, each figure beside its yardstick in the same run: PostgreSQL with
//! real durability, daemons as processes, buyers over TLS. `docs/performance.md` has the results.
//!
//! ```text
//! cargo bench --bench system                      everything
//! cargo bench --bench system -- drain latency     some of it
//! cargo bench --bench system -- charts docs       the charts of docs/performance.md, from its tables
//! ```

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a benchmark reads the world, and fails by panicking"
)]

mod bed;
mod receiver;
mod processes;
mod posting;
mod drain;
mod sealed;
mod cost;
mod floor;
mod latency;
mod seller;
mod conditions;
mod lanes;
mod rolling;
mod footprint;
mod peer;
mod figures;
mod table;
mod chart;
#[path = "../../tests/it/support/scratch.rs"]
mod scratch;
#[path = "../../tests/it/support/tls.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod tls;

/// The daemon's: what sends without a database is to have no handicap.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.first().is_some_and(|first| first == "receiver") {
        return receiver::serve(&arguments[1..]);
    }
    if arguments.first().is_some_and(|first| first == "charts") {
        return chart::draw(arguments[1].as_ref());
    }
    taskbell::daemon::telemetry::install_crypto();
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|argument| argument == name);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut tables = Vec::new();
        if wanted("drain") {
            tables.push(drain::drain(3).await);
        }
        if wanted("spread") {
            tables.push(drain::spread(3).await);
        }
        if wanted("burst") {
            tables.push(drain::burst(5).await);
        }
        if wanted("queue") {
            tables.push(drain::queue(9).await);
        }
        if wanted("sealed") {
            tables.push(sealed::sealed(5).await);
        }
        if wanted("cost") {
            tables.extend(cost::cost().await);
        }
        if wanted("latency") {
            tables.push(latency::latency().await);
        }
        if wanted("seller") {
            tables.push(seller::seller(3, clients()).await);
        }
        if wanted("history") {
            tables.push(conditions::history(5).await);
        }
        if wanted("snapshot") {
            tables.extend(conditions::snapshot(minutes()).await);
        }
        if wanted("backlog") {
            tables.push(conditions::backlog().await);
        }
        if wanted("lanes") {
            tables.push(lanes::lanes(1).await);
        }
        if wanted("lanes") || wanted("recovery") {
            tables.push(lanes::recovery().await);
        }
        if wanted("rolling") {
            tables.push(rolling::rolling().await);
        }
        if wanted("memory") {
            tables.push(footprint::memory().await);
        }
        if wanted("idle") {
            tables.push(footprint::idle().await);
        }
        if wanted("start") {
            tables.push(footprint::start().await);
        }
        tables.iter().for_each(table::Table::print);
    });
}

/// How many sellers write at once; `BENCH_CLIENTS`, otherwise several numbers of them in turn.
fn clients() -> Option<u32> {
    std::env::var("BENCH_CLIENTS").ok().map(|clients| clients.parse().unwrap())
}

/// How long a transaction is held open; `BENCH_MINUTES`, ten of them otherwise.
fn minutes() -> u64 {
    std::env::var("BENCH_MINUTES").map_or(10, |minutes| minutes.parse().unwrap())
}
