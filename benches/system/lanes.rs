//! What healthy destinations notice of sick ones, and how the sick ones come back.

use std::net::TcpListener;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::Client;

use super::bed::{Bed, tidy};
use super::figures::Quantiles;
use super::latency::{complete_evenly, scaled};
use super::table::{Table, thousands};

/// Owed to each of the sick destinations.
const OWED: i64 = 20_000;
const COMMITS: usize = 1200;
const BETWEEN: Duration = Duration::from_millis(50);

pub async fn lanes(rounds: usize) -> Vec<Table> {
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
    vec![latencies, recovery(&mut bed, &client).await]
}

async fn measure(bed: &mut Bed, client: &Client) -> Quantiles {
    tidy(client).await;
    bed.receiver.forget();
    let daemon = bed.daemon(&[]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let committed = complete_evenly(client, "decisioning_tasks", BETWEEN, scaled(COMMITS)).await;
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
        bed.tasks_at(client, prefix, OWED, path, &[port]).await;
    }
    bed.journaled(client).await;
    for prefix in ["hangs_", "fails_", "refuses_"] {
        bed.complete(client, prefix, 1000).await;
    }
}

/// After a minute of trouble both that answered badly are well again, all at once.
async fn recovery(bed: &mut Bed, client: &Client) -> Table {
    let mut table = Table::new(
        "Recovery: 40,000 owed to two destinations that are well again after a minute",
        &["from the first webhook on", "arrived by then"],
    );
    bed.empty(client).await;
    owe_the_sick(bed, client).await;
    tidy(client).await;
    bed.receiver.forget();
    let daemon = bed.daemon(&[]).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    bed.receiver.forget();
    bed.receiver.heal();
    let healed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    bed.receiver.wait_for_some(2 * OWED as usize, Duration::from_secs(240)).await;
    daemon.stop();
    let arrivals: Vec<u128> = bed.receiver.dump().into_iter().map(|(_, at)| at).collect();
    let first = arrivals.iter().min().copied().unwrap_or(healed);
    let by =
        |seconds: f64| arrivals.iter().filter(|at| (**at - first) as f64 / 1e9 <= seconds).count() as f64;
    for seconds in [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0] {
        table.row([format!("{seconds} s"), thousands(by(seconds))]);
    }
    let last = arrivals.iter().max().copied().unwrap_or(healed);
    table.row([format!("the last, {:.1} s", (last - first) as f64 / 1e9), thousands(arrivals.len() as f64)]);
    table.row([
        format!("from the recovery to the first: {:.1} s", (first - healed) as f64 / 1e9),
        String::new(),
    ]);
    table
}
