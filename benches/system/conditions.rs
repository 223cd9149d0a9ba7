//! The drain again with years behind it, and while somebody holds a transaction open.

use std::time::{Duration, Instant};

use super::bed::{Bed, RESULT_BYTES, tidy};
use super::cost::{COUNTING, count_statements, statements};
use super::drain::drained;
use super::latency::complete_evenly;
use super::table::{Table, thousands};

const OWED: i64 = 50_000;
const DESTINATIONS: usize = 50;

/// Ten million settled webhooks in ten days' partitions, beside none: two databases in turn.
pub async fn history(rounds: usize) -> Table {
    let mut table = Table::new(
        "History: drain of 50,000 with settled webhooks behind it",
        &["behind it", "webhooks/s", "of none"],
    );
    let (mut young, mut old) = (Bed::new(DESTINATIONS).await, Bed::new(DESTINATIONS).await);
    let (of_young, of_old) = (young.client().await, old.client().await);
    of_old.batch_execute(HISTORY).await.unwrap();
    tidy(&of_old).await;
    let settled: i64 =
        of_old.query_one("SELECT count(*) FROM taskbell.transition", &[]).await.unwrap().get(0);
    for _ in 0..rounds {
        of_young.batch_execute("TRUNCATE taskbell.transition, taskbell.attempt").await.unwrap();
        let without = drain(&mut young, &of_young).await;
        table.row(["nothing".to_owned(), thousands(without), "1".to_owned()]);
        let rate = drain(&mut old, &of_old).await;
        table.row([thousands(settled as f64), thousands(rate), format!("{:.2}", rate / without)]);
    }
    table
}

/// A session that has looked once and then stays in its transaction, for so many minutes under load.
/// The drains, and what their statements cost.
pub async fn snapshot(minutes: u64) -> Vec<Table> {
    let mut table = Table::new(
        "Held snapshot: 500 commits a second, then a drain of 50,000",
        &["another session's transaction", "webhooks/s", "of none"],
    );
    let mut costs = Vec::new();
    let mut bed = Bed::with(DESTINATIONS, &COUNTING).await;
    let client = bed.client().await;
    let load = PER_SECOND * 60 * i64::try_from(minutes).unwrap();
    let mut free = 0.0;
    for held in [false, true] {
        bed.empty(&client).await;
        bed.tasks_at(&client, "owed_", OWED, "ok", &bed.receiver.ports).await;
        bed.journaled(&client).await;
        tidy(&client).await;
        let other = bed.client().await;
        if held {
            let look = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM taskbell.schema_version";
            other.batch_execute(look).await.unwrap();
        }
        bed.tasks(&client, load).await;
        let daemon = bed.daemon(&[]).await;
        bed.receiver.forget();
        let between = Duration::from_secs(1) / u32::try_from(PER_SECOND).unwrap();
        // Without it a minute is as good as ten: what is dead is vacuumed away.
        let commits = usize::try_from(if held { load } else { PER_SECOND * 60 }).unwrap();
        complete_evenly(&client, "decisioning_tasks", between, 1..commits + 1).await;
        bed.settled(&client).await;
        daemon.stop();
        bed.complete(&client, "owed_", RESULT_BYTES).await;
        count_statements(&client).await;
        let rate = OWED as f64 / drained(&mut bed, &client, OWED as usize, &[]).await.as_secs_f64();
        let whose =
            if held { format!("open for {minutes} minutes") } else { "none, after one minute".to_owned() };
        let title = format!("Held snapshot: statements of the drain, another's transaction: {whose}");
        costs.push(statements(&title, &client, OWED as usize).await);
        if !held {
            free = rate;
        }
        table.row([whose, thousands(rate), format!("{:.2}", rate / free)]);
        drop(other);
    }
    costs.insert(0, table);
    costs
}

const PER_SECOND: i64 = 500;

async fn drain(bed: &mut Bed, client: &tokio_postgres::Client) -> f64 {
    bed.owe(client, OWED, RESULT_BYTES).await;
    OWED as f64 / drained(bed, client, OWED as usize, &[]).await.as_secs_f64()
}

/// What looking for due rows costs when few of a million are due.
pub async fn backlog() -> Table {
    let mut table = Table::new(
        "Backlog: claiming 10,000 due webhooks of 2,000 destinations, 64 at a time",
        &["owed in all", "ms a claim, median", "99th", "of 10,000"],
    );
    let bed = Bed::new(1).await;
    let client = bed.client().await;
    let mut few = 0.0;
    for waiting in [0_i64, 990_000] {
        bed.empty(&client).await;
        client.execute(BACKLOG, &[&10_000_i64, &0.0]).await.unwrap();
        client.execute(BACKLOG, &[&waiting, &3600.0]).await.unwrap();
        tidy(&client).await;
        let outbox = bed.outbox();
        let mut took = Vec::new();
        let mut claimed = 0;
        while claimed < 10_000 {
            let began = Instant::now();
            claimed += outbox_claim(&outbox).await;
            took.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        let took = super::figures::Quantiles::of(took);
        if waiting == 0 {
            few = took.median();
        }
        table.row([
            thousands((10_000 + waiting) as f64),
            format!("{:.2}", took.median()),
            format!("{:.2}", took.at(0.99)),
            format!("{:.2}", took.median() / few),
        ]);
    }
    table
}

async fn outbox_claim(outbox: &taskbell::outbox::NativeOutbox) -> usize {
    use taskbell::outbox::{Outbox, Room};
    let room = Room::of(64, 8);
    let claims = outbox.claim(&room).await.unwrap().claims.len();
    assert!(claims > 0, "a claim finds rows while some are due");
    claims
}

const HISTORY: &str = include_str!("history.sql");
const BACKLOG: &str = include_str!("backlog.sql");
