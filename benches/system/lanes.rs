//! What healthy destinations notice of sick ones, and how the sick ones come back.

use std::net::TcpListener;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::Client;

use super::bed::{Bed, tidy};
use super::figures::Quantiles;
use super::latency::{complete_evenly, scaled};
use super::table::{Table, thousands};

/// Owed to each of the sick destinations.
const OWED: usize = 20_000;
const COMMITS: usize = 1200;
const BETWEEN: Duration = Duration::from_millis(50);

pub async fn lanes(rounds: usize) -> Table {
    let mut latencies = Table::new(
        "Lanes: from commit to arrival at ten healthy destinations, 20/s for 60 s, in milliseconds",
        &["beside them", "arrived", "median", "99th", "highest", "99th, of nothing's"],
    );
    let mut bed = Bed::new(12).await;
    let client = bed.client().await;
    for _ in 0..rounds {
        bed.empty(&client).await;
        bed.tasks_at(&client, "task_", COMMITS as i64, "ok", &bed.receiver.ports[..10]).await;
        let alone = measure(&mut bed, &client).await;
        latencies.row(row("nothing", &alone, None));
        bed.empty(&client).await;
        owe_the_sick(&bed, &client).await;
        bed.tasks_at(&client, "task_", COMMITS as i64, "ok", &bed.receiver.ports[..10]).await;
        let beside = measure(&mut bed, &client).await;
        let who = "20,000 owed each to one that hangs, one that refuses and one that answers 500";
        latencies.row(row(who, &beside, Some(beside.at(0.99) / alone.at(0.99))));
    }
    latencies
}

async fn measure(bed: &mut Bed, client: &Client) -> Quantiles {
    tidy(client).await;
    bed.receiver.forget();
    let daemon = bed.daemon(&[]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let committed = complete_evenly(client, "decisioning_tasks", BETWEEN, 1..scaled(COMMITS) + 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    daemon.stop();
    bed.receiver.latencies(&committed)
}

fn row(who: &str, latencies: &Quantiles, ratio: Option<f64>) -> [String; 6] {
    let ms = |seconds: f64| format!("{:.2}", seconds * 1000.0);
    [
        who.to_owned(),
        format!("{} of {}", latencies.len(), scaled(COMMITS)),
        ms(latencies.median()),
        ms(latencies.at(0.99)),
        ms(latencies.highest()),
        ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
    ]
}

async fn owe_the_sick(bed: &Bed, client: &Client) {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (prefix, path, port) in [
        ("hangs_", "hang", bed.receiver.ports[10]),
        ("fails_", "500", bed.receiver.ports[11]),
        ("refuses_", "ok", nobody),
    ] {
        bed.owe_at(client, prefix, scaled(OWED) as i64, path, &[port], 1000).await;
    }
}

/// After a minute of trouble both that answered badly are well again, all at once.
pub async fn recovery() -> Table {
    let mut table = Table::new(
        "Recovery: 20,000 owed to each of two destinations that are well again after a minute",
        &["arrived", "where it answered 500", "where it hung"],
    );
    let mut bed = Bed::new(12).await;
    let client = bed.client().await;
    owe_the_sick(&bed, &client).await;
    tidy(&client).await;
    let daemon = bed.daemon(&[]).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    bed.receiver.forget();
    bed.receiver.heal();
    let healed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    bed.receiver.wait_for_some(2 * scaled(OWED), Duration::from_secs(240)).await;
    daemon.stop();
    let highest = bed.receiver.highest();
    let arrivals = bed.receiver.dump();
    let of = |prefix: &str| {
        let mut after: Vec<f64> = arrivals
            .iter()
            .filter(|(task, _)| task.starts_with(prefix))
            .map(|(_, at)| at.saturating_sub(healed) as f64 / 1e9)
            .collect();
        after.sort_by(f64::total_cmp);
        after
    };
    let (failed, hung) = (of("fails_"), of("hangs_"));
    let seconds = |at: Option<&f64>| at.map_or("never".to_owned(), |at| format!("{at:.1} s"));
    table.row(["the first, after".to_owned(), seconds(failed.first()), seconds(hung.first())]);
    for after in [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0] {
        let by = |arrived: &[f64]| {
            let first = arrived.first().copied().unwrap_or_default();
            thousands(arrived.partition_point(|at| at - first <= after) as f64)
        };
        table.row([format!("{after} s later"), by(&failed), by(&hung)]);
    }
    let last = |arrived: &[f64]| format!("{}, {}", thousands(arrived.len() as f64), seconds(arrived.last()));
    table.row(["in all, after".to_owned(), last(&failed), last(&hung)]);
    table.row(["in flight at once, at most".to_owned(), highest[11].to_string(), highest[10].to_string()]);
    table
}
