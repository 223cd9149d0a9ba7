//! How soon a webhook arrives after the commit that owes it, beside a peer.

use std::ops::Range;
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
    /// Webhooks to each destination before it begins.
    warm_up: usize,
}

const PACES: [Pace; 2] = [
    Pace { name: "20/s, 60 s", between: Duration::from_millis(50), commits: 1200, warm_up: 2 },
    Pace { name: "200/s, 60 s", between: Duration::from_millis(5), commits: 12_000, warm_up: 2 },
];
/// Asleep, without connections to the buyers.
const FROM_SLEEP: Pace =
    Pace { name: "one in 21 s", between: Duration::from_secs(21), commits: 12, warm_up: 0 };
const DESTINATIONS: usize = 50;
const FLOOR: &str = "NOTIFY and POST, no outbox";
const PEER: &str = "graphile-worker";
const OURS: &str = "taskbell";

pub async fn latency() -> Table {
    let mut table = Table::new(
        "Latency: from the commit to the webhook's arrival, in milliseconds",
        &[
            "who",
            "pace",
            "arrived",
            "median",
            "99th",
            "highest",
            "median, of the peer's",
            "context switches of the daemon, each",
        ],
    );
    let mut bed = Bed::new(DESTINATIONS).await;
    let peer = Peer::find();
    for mut pace in PACES {
        pace.commits = scaled(pace.commits);
        let theirs = match &peer {
            Some(peer) => {
                let client = peer.set_up(&bed, pace.tasks()).await;
                let _worker = peer.start(&bed, &[]);
                tokio::time::sleep(SETTLE).await;
                Some(measure(&mut bed, &client, "tasks", &pace).await)
            }
            None => None,
        };
        let client = bed.client().await;
        bed.empty(&client).await;
        bed.tasks(&client, pace.tasks() as i64).await;
        let daemon = bed.daemon(&[]).await;
        tokio::time::sleep(SETTLE).await;
        let before = daemon.processes().voluntary_switches();
        let ours = measure(&mut bed, &client, "decisioning_tasks", &pace).await;
        let switches = (daemon.processes().voluntary_switches() - before) / pace.tasks() as f64;
        daemon.stop();
        let least = {
            let _floor = Floor::start(&bed, &client, pace.tasks() as i64).await;
            measure(&mut bed, &client, floor::TABLE, &pace).await
        };
        rows(&mut table, &pace, &least, theirs.as_ref(), &ours, Some(switches));
    }
    let pace = Pace { commits: scaled(FROM_SLEEP.commits), ..FROM_SLEEP };
    let [least, ours, theirs] = from_sleep(&mut bed, peer.as_ref(), &pace).await;
    rows(&mut table, &pace, &least, peer.as_ref().map(|_| &theirs), &ours, None);
    table
}

/// All of them beside each other, in turn: nothing happens but a commit every few seconds.
async fn from_sleep(bed: &mut Bed, peer: Option<&Peer>, pace: &Pace) -> [Quantiles; 3] {
    let client = bed.client().await;
    bed.empty(&client).await;
    bed.tasks_at(&client, "ours_", pace.commits as i64, "ok", &bed.receiver.ports).await;
    let daemon = bed.daemon(&[]).await;
    let _floor = Floor::start(bed, &client, pace.commits as i64).await;
    let theirs = match peer {
        Some(peer) => Some((peer.set_up(bed, pace.commits).await, peer.start(bed, &[]))),
        None => None,
    };
    tokio::time::sleep(SETTLE).await;
    bed.receiver.forget();
    let mut latencies = [Vec::new(), Vec::new(), Vec::new()];
    let between = pace.between / if theirs.is_some() { 3 } else { 2 };
    let mut beat = tokio::time::interval(between);
    for n in 1..=pace.commits {
        for (who, (client, table, prefix)) in [
            Some((&client, floor::TABLE, "task_")),
            Some((&client, "decisioning_tasks", "ours_")),
            theirs.as_ref().map(|(client, _)| (client, "tasks", "task_")),
        ]
        .into_iter()
        .enumerate()
        .filter_map(|(who, turn)| Some((who, turn?)))
        {
            beat.tick().await;
            let sql = complete(table);
            let task = format!("{prefix}{n}");
            client.execute(&sql, &[&task, &result(RESULT_BYTES)]).await.unwrap();
            let commit = (task, now());
            // Their names are the same as the floor's: each is looked at before the next.
            tokio::time::sleep(between / 2).await;
            latencies[who].extend(bed.receiver.latencies(&[commit]).values());
            bed.receiver.forget();
        }
    }
    daemon.stop();
    latencies.map(Quantiles::of)
}

/// Fewer with `BENCH_SHARE=0.1`, to look only.
pub fn scaled(commits: usize) -> usize {
    let share: f64 = std::env::var("BENCH_SHARE").map_or(1.0, |share| share.parse().unwrap());
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
    let scaled = (commits as f64 * share) as usize;
    scaled.max(1)
}

impl Pace {
    /// How many tasks there must be.
    fn tasks(&self) -> usize {
        self.warm_up * DESTINATIONS + self.commits
    }
}

fn rows(
    table: &mut Table,
    pace: &Pace,
    least: &Quantiles,
    theirs: Option<&Quantiles>,
    ours: &Quantiles,
    switches: Option<f64>,
) {
    let ms = |seconds: f64| format!("{:.2}", seconds * 1000.0);
    let ratio = theirs.map_or(String::new(), |theirs| format!("{:.2}", ours.median() / theirs.median()));
    let switches = switches.map_or(String::new(), |switches| format!("{switches:.1}"));
    for (who, latencies, ratio, switches) in [
        (FLOOR, Some(least), String::new(), String::new()),
        (PEER, theirs, String::new(), String::new()),
        (OURS, Some(ours), ratio, switches),
    ] {
        let Some(latencies) = latencies else { continue };
        table.row([
            who.to_owned(),
            pace.name.to_owned(),
            format!("{} of {}", latencies.len(), pace.commits),
            ms(latencies.median()),
            // Of a few it would be the highest.
            if latencies.len() < 100 { String::new() } else { ms(latencies.at(0.99)) },
            ms(latencies.highest()),
            ratio,
            switches,
        ]);
    }
}

/// Completes `task_1`, `task_2`, … at this pace, and says how long each webhook took from there. The first ones, that find
/// no connection yet, do not count.
async fn measure(bed: &mut Bed, client: &Client, table: &str, pace: &Pace) -> Quantiles {
    let first = pace.warm_up * DESTINATIONS + 1;
    bed.receiver.forget();
    complete_evenly(client, table, pace.between, 1..first).await;
    bed.receiver.wait_for_some(first - 1, LATE).await;
    tokio::time::sleep(SETTLE).await;
    bed.receiver.forget();
    let committed = complete_evenly(client, table, pace.between, first..first + pace.commits).await;
    bed.receiver.wait_for_some(pace.commits, LATE).await;
    bed.receiver.latencies(&committed)
}

/// Completes tasks of these numbers. When each commit was answered, in nanoseconds since 1970.
pub async fn complete_evenly(
    client: &Client,
    table: &str,
    between: Duration,
    tasks: Range<usize>,
) -> Vec<(String, u128)> {
    let statement = client.prepare(&complete(table)).await.unwrap();
    let result = result(RESULT_BYTES);
    let mut committed = Vec::with_capacity(tasks.len());
    let mut beat = tokio::time::interval(between);
    for n in tasks {
        beat.tick().await;
        let task = format!("task_{n}");
        client.execute(&statement, &[&task, &result]).await.unwrap();
        committed.push((task, now()));
    }
    committed
}

fn complete(table: &str) -> String {
    format!("UPDATE {table} SET state = 'completed', result = $2::text::jsonb WHERE task_id = $1")
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

/// Until what comes before the first commit is over.
const SETTLE: Duration = Duration::from_secs(3);
/// What has not arrived by then does not count as arrived.
const LATE: Duration = Duration::from_secs(10);
