//! How soon a webhook arrives after the commit that owes it, beside a peer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::Client;

use super::bed::{Bed, RESULT_BYTES, result};
use super::figures::Quantiles;
use super::floor::{self, Floor};
use super::peer::Peer;
use super::table::Table;

/// One UPDATE a commit, evenly spaced.
struct Pace {
    name: &'static str,
    between: Duration,
    commits: usize,
}

const PACES: [Pace; 3] = [
    Pace { name: "20/s, 60 s", between: Duration::from_millis(50), commits: 1200 },
    Pace { name: "200/s, 60 s", between: Duration::from_millis(5), commits: 12_000 },
    // Asleep, its connections to the buyers closed long ago: as after a night.
    Pace { name: "one in 20 s", between: Duration::from_secs(20), commits: 5 },
];
const DESTINATIONS: usize = 50;

pub async fn latency() -> Table {
    let mut table = Table::new(
        "Latency: from the commit to the webhook's arrival, in milliseconds",
        &["who", "pace", "arrived", "median", "99th", "highest", "median, of the peer's"],
    );
    let mut bed = Bed::new(DESTINATIONS).await;
    let peer = Peer::find();
    for mut pace in PACES {
        pace.commits = scaled(pace.commits);
        let theirs = match &peer {
            Some(peer) => {
                let client = peer.set_up(&bed, pace.commits).await;
                let _worker = peer.start(&bed, false);
                tokio::time::sleep(SETTLE).await;
                Some(measure(&mut bed, &client, "tasks", &pace).await)
            }
            None => None,
        };
        let client = bed.client().await;
        bed.empty(&client).await;
        bed.tasks(&client, pace.commits as i64).await;
        let daemon = bed.daemon(&[]).await;
        tokio::time::sleep(SETTLE).await;
        let ours = measure(&mut bed, &client, "decisioning_tasks", &pace).await;
        daemon.stop();
        let least = {
            let _floor = Floor::start(&bed, &client, pace.commits as i64).await;
            measure(&mut bed, &client, floor::TABLE, &pace).await
        };
        table.row(row("NOTIFY and POST, without an outbox", &pace, &least, None));
        if let Some(theirs) = &theirs {
            table.row(row("graphile-worker", &pace, theirs, None));
        }
        let ratio = theirs.as_ref().map(|theirs| ours.median() / theirs.median());
        table.row(row("taskbell", &pace, &ours, ratio));
    }
    table
}

/// Fewer with `BENCH_SHARE=0.1`, to look only.
pub fn scaled(commits: usize) -> usize {
    let share: f64 = std::env::var("BENCH_SHARE").map_or(1.0, |share| share.parse().unwrap());
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
    let scaled = (commits as f64 * share) as usize;
    scaled.max(1)
}

fn row(who: &str, pace: &Pace, latencies: &Quantiles, ratio: Option<f64>) -> [String; 7] {
    let ms = |seconds: f64| format!("{:.2}", seconds * 1000.0);
    [
        who.to_owned(),
        pace.name.to_owned(),
        format!("{} of {}", latencies.len(), pace.commits),
        ms(latencies.median()),
        ms(latencies.at(0.99)),
        ms(latencies.highest()),
        ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
    ]
}

/// Completes `task_1`, `task_2`, … at this pace, and says how long each webhook took from there.
async fn measure(bed: &mut Bed, client: &Client, table: &str, pace: &Pace) -> Quantiles {
    bed.receiver.forget();
    let committed = complete_evenly(client, table, pace.between, pace.commits).await;
    bed.receiver.wait_for_some(pace.commits, LATE).await;
    bed.receiver.latencies(&committed)
}

/// When each commit was answered, in nanoseconds since 1970.
pub async fn complete_evenly(
    client: &Client,
    table: &str,
    between: Duration,
    commits: usize,
) -> Vec<(String, u128)> {
    let sql = format!("UPDATE {table} SET state = 'completed', result = $2::text::jsonb WHERE task_id = $1");
    let statement = client.prepare(&sql).await.unwrap();
    let result = result(RESULT_BYTES);
    let mut committed = Vec::with_capacity(commits);
    let mut beat = tokio::time::interval(between);
    for n in 1..=commits {
        beat.tick().await;
        let task = format!("task_{n}");
        client.execute(&statement, &[&task, &result]).await.unwrap();
        committed.push((task, SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()));
    }
    committed
}

/// Until what comes before the first commit is over.
const SETTLE: Duration = Duration::from_secs(3);
/// What has not arrived by then does not count as arrived.
const LATE: Duration = Duration::from_secs(10);
