//! What one delivery costs in a drain: statements, write-ahead log, processor time, and where.

use std::time::Duration;

use tokio_postgres::Client;

use super::bed::{Bed, RESULT_BYTES};
use super::processes::cores;
use super::table::{Table, thousands};

const OWED: usize = 50_000;
const DESTINATIONS: usize = 50;
const PATIENCE: Duration = Duration::from_secs(600);

/// Two tables: by statement, and by process.
pub async fn cost() -> Vec<Table> {
    let mut bed = Bed::with(DESTINATIONS, &COUNTING).await;
    let client = bed.client().await;
    bed.owe(&client, OWED as i64, RESULT_BYTES).await;
    count_statements(&client).await;
    bed.receiver.forget();
    let before = [&bed.server_processes(), &bed.receiver.processes()].map(|process| process.cpu_seconds());
    let daemon = bed.daemon(&[]).await;
    let began = std::time::Instant::now();
    bed.receiver.wait_for(OWED, PATIENCE).await;
    bed.settled(&client).await;
    let took = began.elapsed();
    let server = bed.server_processes().cpu_seconds() - before[0];
    let receiver = bed.receiver.processes().cpu_seconds() - before[1];
    let ours = daemon.processes().cpu_seconds();
    daemon.stop();

    let statements = statements("Cost: statements, for each of 50,000 deliveries", &client, OWED).await;
    let each = |n: f64| n / OWED as f64;
    let mut processes = Table::new("Cost: processor time of a delivery", &["process", "µs a delivery"]);
    let idle = took.as_secs_f64() * cores() - server - receiver - ours;
    for (name, seconds) in [
        ("PostgreSQL", server),
        ("taskbell", ours),
        ("the receiver", receiver),
        ("idle, or waiting for the disk", idle),
    ] {
        processes.row([name.to_owned(), format!("{:.0}", each(seconds * 1e6))]);
    }
    processes.row(["webhooks/s".to_owned(), thousands(OWED as f64 / took.as_secs_f64())]);
    vec![statements, processes]
}

/// Settings of a server whose statements are counted.
pub const COUNTING: [&str; 2] = ["shared_preload_libraries=pg_stat_statements", "track_io_timing=on"];

/// Counts from now on.
pub async fn count_statements(client: &Client) {
    let begin = "CREATE EXTENSION IF NOT EXISTS pg_stat_statements; SELECT pg_stat_statements_reset()";
    client.batch_execute(begin).await.unwrap();
}

/// What statements have cost since then.
pub async fn statements(title: &str, client: &Client, deliveries: usize) -> Table {
    let columns = ["statement", "calls", "rows a call", "µs a delivery", "bytes of WAL", "pages"];
    let mut table = Table::new(title, &columns);
    let each = |n: f64| n / deliveries as f64;
    for row in client.query(STATEMENTS, &[]).await.unwrap() {
        let (calls, rows): (i64, i64) = (row.get(1), row.get(2));
        table.row([
            row.get(0),
            thousands(calls as f64),
            format!("{:.1}", rows as f64 / calls as f64),
            format!("{:.1}", each(row.get::<_, f64>(3) * 1000.0)),
            format!("{:.0}", each(row.get(4))),
            format!("{:.1}", each(row.get::<_, i64>(5) as f64)),
        ]);
    }
    table
}

/// By the first words of a statement, which are a comment where it is one of ours.
const STATEMENTS: &str = "SELECT CASE WHEN query LIKE '-- %' THEN regexp_replace(split_part(query, E'\n', 1), '^-- |[.,:;].*$', '', 'g') \
                                 ELSE left(split_part(query, E'\n', 1), 50) END, calls, rows, \
                          total_exec_time, wal_bytes::float8, shared_blks_hit + shared_blks_read \
                          FROM pg_stat_statements WHERE total_exec_time > 5 ORDER BY total_exec_time DESC LIMIT 8";
