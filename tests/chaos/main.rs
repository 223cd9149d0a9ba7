//! Chaos: sellers, daemons and buyers on a real database, while by seed everything breaks.
//!
//! A run is a private PostgreSQL, some daemons as processes, some sellers, a few misbehaving
//! receivers, and faults of many kinds for a while. Then the faults stop, what is owed settles,
//! and the three promises are held against what was committed and what arrived (`verdict`).
//!
//! ```text
//!   sellers ──────────────▶ PostgreSQL ◀── proxy ── daemons ── TLS ──▶ receivers
//!                               ▲            ▲         ▲                   ▲
//!                               └────────────┴─ faults ┴───────────────────┘
//! ```
//!
//! A seed decides what is done, not how the processes interleave: a failure may need some runs
//! of its seed to come again. `just chaos` runs many seeds and prints one table for all.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test reads the world, and fails by panicking"
)]

mod sellers;
mod cluster;
mod proxy;
mod daemons;
mod receiver;
mod faults;
mod recovery;
mod verdict;
mod report;
#[path = "../it/support/scratch.rs"]
mod scratch;
#[path = "../it/support/tls.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod tls;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use cluster::Cluster;
use daemons::Fleet;
use faults::{Kind, Mischief};
use receiver::Receivers;
use recovery::recover;
use report::Report;
use verdict::Verdict;

/// Everything that a run needs to know.
struct Run {
    seed: u64,
    daemons: usize,
    sellers: usize,
    /// Only faults that lose no answer of the database.
    gentle: bool,
    /// How long faults are injected.
    lasts: Duration,
    /// Between two faults, about.
    fault_pause: Duration,
    /// Between two transactions of a seller, about.
    pace: Duration,
}

impl Run {
    /// What a seed stands for.
    fn of(seed: u64, lasts: Duration) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        Self {
            seed,
            daemons: dice.random_range(1..=3),
            sellers: dice.random_range(2..=6),
            gentle: seed.is_multiple_of(5),
            lasts,
            fault_pause: Duration::from_millis(dice.random_range(150..700)),
            pace: Duration::from_millis(dice.random_range(10..50)),
        }
    }

    async fn play(&self) -> Report {
        taskbell::daemon::telemetry::install_crypto();
        let cluster = Arc::new(Cluster::start().await);
        let receivers = Arc::new(Receivers::start(LANES, self.seed).await);
        let fleet = Fleet::start(self.daemons, &cluster, &receivers).await;
        let (selling, tending) = (CancellationToken::new(), CancellationToken::new());
        let tended = tokio::spawn(fleet.clone().tend(tending.clone()));
        let mut sellers =
            sellers::start(self.sellers, self.seed, &cluster, &receivers.addresses, self.pace, &selling);
        let mischief = Arc::new(Mischief {
            cluster: cluster.clone(),
            fleet: fleet.clone(),
            receivers: receivers.clone(),
            kinds: Kind::ALL.into_iter().filter(|kind| !self.gentle || kind.is_gentle()).collect(),
            done: Mutex::default(),
        });
        mischief.run(self.seed, self.lasts, self.fault_pause).await;
        selling.cancel();
        while let Some(ended) = sellers.join_next().await {
            ended.unwrap();
        }
        receivers.behave();
        let client = cluster.patient_client().await;
        let mut complaints = Vec::new();
        let longest_recovery = recover(&client).await.unwrap_or_else(|complaint| {
            complaints.push(format!("{complaint}\n{}", fleet.tails()));
            Duration::MAX
        });
        complaints.extend(self.measured(&client, &fleet, &receivers).await.err());
        tending.cancel();
        tended.await.unwrap();
        for slot in &fleet.slots {
            fleet.stop(slot).await;
        }
        let faults = mischief.done.lock().unwrap().clone();
        let mut verdict = Verdict::reach(&client, &receivers.posts(), &faults).await;
        complaints.append(&mut fleet.complaints.lock().unwrap());
        verdict.broken.extend(complaints);
        for complaint in &mut verdict.broken {
            *complaint = format!("seed {}: {complaint}", self.seed);
        }
        let mut kinds = BTreeMap::new();
        for fault in faults {
            *kinds.entry(fault.kind).or_default() += 1;
        }
        let longest_stop = *fleet.longest_stop.lock().unwrap();
        Report {
            runs: 1,
            gentle: usize::from(self.gentle),
            processes: fleet.lives(),
            faults: kinds,
            verdict,
            longest_stop,
            longest_recovery,
        }
    }

    /// Each transition is observed once: of some calm tasks, and of a whole gentle run.
    async fn measured(&self, client: &Client, fleet: &Fleet, receivers: &Receivers) -> Result<(), String> {
        let before = at_rest(fleet).await?;
        if self.gentle {
            let row = client.query_one(CHANGES, &[]).await.unwrap();
            let committed = (row.get::<_, i64>(0), row.get::<_, i64>(1));
            // How long a state lasted is known only if the journal had its beginning by then.
            if before.0 != committed.0 || before.1 > committed.1 {
                return Err(format!("ends and changes observed: {before:?}, committed: {committed:?}"));
            }
        }
        let tasks = sellers::calm(client, &receivers.addresses).await?;
        let after = at_rest(fleet).await?;
        let tasks = i64::try_from(tasks).unwrap();
        let (ends, changes) = (after.0 - before.0, after.1 - before.1);
        match (ends, changes) == (tasks, 2 * tasks) {
            true => Ok(()),
            false => Err(format!("of {tasks} calm tasks {ends} ends and {changes} changes were observed")),
        }
    }
}

/// The same, once nothing more is added: how long a state lasted is observed a little later.
async fn at_rest(fleet: &Fleet) -> Result<(i64, i64), String> {
    let mut seen = observed(fleet).await?;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = observed(fleet).await?;
        if now == seen {
            return Ok(now);
        }
        seen = now;
    }
}

/// Ends of tasks and changes of state that the daemons' metrics have.
async fn observed(fleet: &Fleet) -> Result<(i64, i64), String> {
    for _ in 0..100 {
        if let Some(metrics) = fleet.metrics().await {
            let sum = |name: &str| {
                let counts = metrics.iter().filter(|(series, _)| series.starts_with(name));
                #[allow(clippy::cast_possible_truncation, reason = "counts")]
                counts.map(|(_, value)| *value as i64).sum()
            };
            return Ok((
                sum("taskbell_task_duration_seconds_count"),
                sum("taskbell_task_state_seconds_count"),
            ));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err("a daemon did not come back".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_everything_breaks_nothing_is_lost_and_nobody_is_rung_wrongly() {
    let report = Run::of(1, Duration::from_secs(12)).play().await;
    println!("{report}");
    assert!(report.verdict.broken.is_empty(), "{report}");
}

/// `just chaos`: TASKBELL_CHAOS_SEEDS (`1..41` or `7`), TASKBELL_CHAOS_SECONDS of faults for each.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "as long as one likes"]
async fn the_same_over_many_seeds() {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let seconds = variable("TASKBELL_CHAOS_SECONDS").parse().unwrap_or(30);
    let seeds = variable("TASKBELL_CHAOS_SEEDS");
    let (first, last) = seeds.split_once("..").unwrap_or((&seeds, ""));
    let first: u64 = first.parse().unwrap_or(1);
    let last: u64 = last.parse().unwrap_or(first + 1);
    let mut sum = Report::default();
    for seed in first..last {
        let run = Run::of(seed, Duration::from_secs(seconds));
        let report = tokio::select! {
            report = run.play() => report,
            _ = tokio::signal::ctrl_c() => break,
        };
        let (owed, broken) = (report.verdict.owed, report.verdict.broken.len());
        println!("seed {seed}: {owed} owed, {broken} broken");
        for complaint in report.verdict.broken.iter().take(3) {
            println!("  {complaint}");
        }
        sum.add(report);
    }
    println!("\n{sum}");
    assert!(sum.verdict.broken.is_empty(), "{} things that must not be", sum.verdict.broken.len());
}

const LANES: usize = 5;
const CHANGES: &str = "SELECT count(*) FILTER (WHERE to_state IN ('completed', 'failed', 'canceled', 'rejected')), \
     count(*) FROM taskbell.timeline WHERE from_state IS NOT NULL";
