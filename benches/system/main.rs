//! The whole of it under load, each figure beside its yardstick in the same run: PostgreSQL with
//! real durability, daemons as processes, buyers over TLS. `docs/performance.md` has the results.
//!
//! ```text
//! cargo bench --bench system                      everything
//! cargo bench --bench system -- drain latency     some of it
//! ```

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a benchmark reads the world, and fails by panicking"
)]

mod bed;
mod receiver;
mod drain;
mod peer;
mod table;
#[path = "../../tests/it/support/scratch.rs"]
mod scratch;
#[path = "../../tests/it/support/tls.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod tls;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.first().is_some_and(|first| first == "receiver") {
        return receiver::serve(&arguments[1..]);
    }
    taskbell::daemon::telemetry::install_crypto();
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|argument| argument == name);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut tables = Vec::new();
        if wanted("drain") {
            tables.push(drain::drain(3).await);
        }
        tables.iter().for_each(table::Table::print);
    });
}
