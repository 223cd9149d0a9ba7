//! A rolling restart under load: two daemons, one after the other stopped and replaced.

use std::collections::HashMap;
use std::time::Duration;

use super::bed::Bed;
use super::latency::{complete_evenly, scaled};
use super::table::Table;

const DESTINATIONS: usize = 50;
const COMMITS: usize = 6000;
const BETWEEN: Duration = Duration::from_millis(5);
/// From one restart to the next.
const PAUSE: Duration = Duration::from_secs(2);

pub async fn rolling() -> Table {
    let mut table = Table::new(
        "Rolling restart: 200 commits a second for 30 s, two daemons, one of them replaced every 2 s",
        &["restarts", "arrived", "sent twice", "median, ms", "99th, ms", "highest, ms"],
    );
    let mut bed = Bed::new(DESTINATIONS).await;
    let (client, seller) = (bed.client().await, bed.client().await);
    let commits = scaled(COMMITS);
    bed.tasks(&client, commits as i64).await;
    let mut daemons = [bed.daemon(&[]).await, bed.daemon(&[]).await];
    tokio::time::sleep(PAUSE).await;
    bed.receiver.forget();
    let selling =
        tokio::spawn(
            async move { complete_evenly(&seller, "decisioning_tasks", BETWEEN, 1..commits + 1).await },
        );
    let mut restarts = 0;
    while !selling.is_finished() {
        tokio::time::sleep(PAUSE).await;
        // The new one first, as Kubernetes does it.
        let new = bed.daemon(&[]).await;
        let old = std::mem::replace(&mut daemons[restarts % 2], new);
        tokio::task::spawn_blocking(move || old.stop()).await.unwrap();
        restarts += 1;
    }
    let committed = selling.await.unwrap();
    bed.settled(&client).await;
    let mut times: HashMap<String, usize> = HashMap::new();
    for (task, _) in bed.receiver.dump() {
        *times.entry(task).or_default() += 1;
    }
    let latencies = bed.receiver.latencies(&committed);
    let ms = |seconds: f64| format!("{:.2}", seconds * 1000.0);
    table.row([
        restarts.to_string(),
        format!("{} of {commits}", latencies.len()),
        times.values().filter(|times| **times > 1).count().to_string(),
        ms(latencies.median()),
        ms(latencies.at(0.99)),
        ms(latencies.highest()),
    ]);
    daemons.into_iter().for_each(super::bed::Daemon::stop);
    table
}
