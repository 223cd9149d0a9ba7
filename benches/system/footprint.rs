//! What a daemon takes from its machine: memory, processor time when nothing happens, its start.

use std::time::{Duration, Instant};

use super::bed::{Bed, tidy};
use super::figures::Quantiles;
use super::table::{Table, thousands};

const DESTINATIONS: usize = 50;
/// More than there are slots.
const MANY_DESTINATIONS: usize = 500;

/// Resident memory, each with a daemon of its own.
pub async fn memory() -> Table {
    let mut table = Table::new(
        "Memory: resident size of a daemon, in MiB",
        &["with", "delivered", "in seconds", "at the end", "highest"],
    );
    let mut bed = Bed::new(DESTINATIONS).await;
    let client = bed.client().await;
    bed.empty(&client).await;
    let daemon = bed.daemon(&[]).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    table.row(row("nothing to do", 0, Duration::ZERO, daemon.processes().resident_mib()));
    daemon.stop();
    for (what, owed, bytes) in [
        ("1,000,000 owed", 1_000_000, 1000),
        ("results of 64 KiB", 5_000, 65_536),
        ("results of 900 KiB", 500, 900 * 1024),
    ] {
        table.row(delivering(&mut bed, what, owed, bytes).await);
    }
    let mut bed = Bed::new(MANY_DESTINATIONS).await;
    table.row(delivering(&mut bed, "100,000 owed to 500 destinations", 100_000, 1000).await);
    table
}

/// A daemon that has so much to deliver, for half a minute at most.
async fn delivering(bed: &mut Bed, what: &str, owed: usize, bytes: usize) -> [String; 5] {
    let client = bed.client().await;
    bed.empty(&client).await;
    bed.owe_at(&client, "task_", owed as i64, "ok", &bed.receiver.ports, bytes).await;
    tidy(&client).await;
    bed.receiver.forget();
    let daemon = bed.daemon(&[]).await;
    let began = Instant::now();
    bed.receiver.wait_for_some(owed, Duration::from_secs(30)).await;
    let took = began.elapsed();
    let row = row(what, bed.receiver.count(), took, daemon.processes().resident_mib());
    daemon.stop();
    row
}

fn row(what: &str, delivered: usize, took: Duration, (now, highest): (f64, f64)) -> [String; 5] {
    let (delivered, took) = (thousands(delivered as f64), format!("{:.1}", took.as_secs_f64()));
    [what.to_owned(), delivered, took, format!("{now:.1}"), format!("{highest:.1}")]
}

/// A minute in which nothing happens.
pub async fn idle() -> Table {
    let mut table = Table::new("Idle: a minute without a task", &["what", "figure"]);
    let bed = Bed::with(1, &["shared_preload_libraries=pg_stat_statements"]).await;
    let client = bed.client().await;
    client.batch_execute("CREATE EXTENSION pg_stat_statements").await.unwrap();
    let daemon = bed.daemon(&[]).await;
    tokio::time::sleep(Duration::from_secs(65)).await;
    let statements = "SELECT coalesce(sum(calls), 0)::float8 FROM pg_stat_statements";
    let calls = || async { client.query_one(statements, &[]).await.unwrap().get::<_, f64>(0) };
    let process = daemon.processes();
    let look = || (process.busy_seconds(), process.voluntary_switches());
    let (before, calls_before) = (look(), calls().await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let after = look();
    // Without our own.
    let called = calls().await - calls_before - 1.0;
    table.row(["of a core".to_owned(), format!("{:.3} %", (after.0 - before.0) / 60.0 * 100.0)]);
    table.row(["wake-ups a second".to_owned(), format!("{:.1}", (after.1 - before.1) / 60.0)]);
    table.row(["statements a minute".to_owned(), format!("{called:.0}")]);
    daemon.stop();
    table
}

/// From exec to ready, on a migrated database.
pub async fn start() -> Table {
    let mut table =
        Table::new("Start: from exec to ready, in milliseconds", &["starts", "median", "highest"]);
    let bed = Bed::new(1).await;
    let mut took = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let daemon = bed.daemon(&[]).await;
        took.push(began.elapsed().as_secs_f64() * 1000.0);
        daemon.stop();
    }
    let took = Quantiles::of(took);
    table.row([took.len().to_string(), format!("{:.0}", took.median()), format!("{:.0}", took.highest())]);
    table
}
