//! Refreshes the gauges that read the database, on a timer, by one daemon of several.
//!
//! Off-scrape, so that a scrape never waits for a query; and keeps house at the same beat:
//! expires rows past their horizon, creates tomorrow's partitions, drops old ones.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deadpool_postgres::{Object, Pool};
use metrics::gauge;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::config::Metrics;
use super::database::explain;
use crate::metrics::{self as names, TaskTypes};
use crate::outbox::{Loan, Outbox, Outboxes, Source, patiently};

/// The reporter.
pub struct Reporter {
    /// Where to read.
    pub pool: Pool,
    /// How long an answer is waited for.
    pub patience: Duration,
    /// Whose rows expire.
    pub outbox: Arc<Outboxes>,
    /// How often, and the limits on age.
    pub metrics: Metrics,
    /// Bounds labels.
    pub types: TaskTypes,
    /// How long the journal is kept.
    pub keep: Duration,
    /// The SDK's outbox, where it is served.
    pub sealed_table: Option<String>,
}

impl Reporter {
    /// Runs until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut beat = interval(self.metrics.refresh);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beats: u32 = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = beat.tick() => {}
            }
            tokio::select! {
                // Half a report does no harm, and its connection is closed.
                () = stop.cancelled() => return,
                () = self.beat(beats) => {}
            }
            beats = beats.wrapping_add(1);
        }
    }

    async fn beat(&self, beats: u32) {
        // Claims pass such rows over by themselves; this only gives them their name.
        if beats.is_multiple_of(EXPIRE_BEATS)
            && let Err(error) = self.expire().await
        {
            tracing::warn!(%error, "rows past their horizon were not expired");
        }
        if let Err(error) = self.report().await {
            tracing::warn!(%error, "gauges were not refreshed");
        }
        // Once an hour or so, and at the start.
        if beats.is_multiple_of(HOUSEKEEPING_BEATS)
            && let Err(error) = self.keep_house().await
        {
            tracing::warn!(%error, "partitions were not maintained");
        }
    }

    async fn expire(&self) -> Result<(), String> {
        let expired = self.outbox.expire().await.map_err(|error| error.to_string())?;
        if expired > 0 {
            names::observe_expired(expired);
            tracing::warn!(rows = expired, "webhooks expired: every attempt inside their horizon failed");
        }
        Ok(())
    }

    async fn report(&self) -> Result<(), String> {
        let mut client = Loan::of(&self.pool).await.map_err(|error| error.to_string())?;
        let rows = patiently(self.patience, self.gauges(&mut client)).await;
        let rows = rows.map_err(|error| error.to_string())?.map_err(|error| explain(&error))?;
        client.give_back();
        if rows {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            gauge!(names::REFRESHED).set(now.as_secs_f64());
        }
        Ok(())
    }

    /// Sets the gauges, unless another daemon does; whether it did.
    async fn gauges(&self, client: &mut Object) -> Result<bool, tokio_postgres::Error> {
        let transaction = client.transaction().await?;
        // Held until the end of the transaction: another daemon that comes at the same time leaves it to us.
        if !transaction.query_one(TURN, &[]).await?.get::<_, bool>(0) {
            transaction.commit().await?;
            return Ok(false);
        }
        report_outbox(Source::Native, &transaction.query_one(OUTBOX, &[]).await?);
        if let Some(table) = &self.sealed_table {
            let sql = SEALED.replace(SDK_TABLE, table);
            report_outbox(Source::Sealed, &transaction.query_one(&sql, &[]).await?);
        }
        let lanes = transaction.query_one(LANES, &[]).await?;
        for (column, state) in names::LANE_STATES.into_iter().enumerate() {
            #[allow(clippy::cast_precision_loss, reason = "lane counts are far below 2^52")]
            gauge!(names::LANES, "state" => state).set(lanes.get::<_, i64>(column) as f64);
        }
        let database = transaction.query_one(DATABASE, &[]).await?;
        gauge!(names::NOTIFY_QUEUE).set(database.get::<_, f64>(0));
        gauge!(names::OLDEST_XMIN).set(database.get::<_, f64>(1));
        let tables = transaction.query(WATCHED, &[]).await?;
        let mut open = Open::default();
        for table in tables {
            let limits: Vec<f64> = self.metrics.sla.values().map(Duration::as_secs_f64).collect();
            let types: Vec<&String> = self.metrics.sla.keys().collect();
            let sql: String = table.get(0);
            for row in transaction.query(&sql, &[&types, &limits]).await? {
                open.add(self.types.label(row.get(0)), row.get(1), row.get(2), row.get(3), row.get(4));
            }
        }
        open.publish();
        transaction.commit().await?;
        Ok(true)
    }

    async fn keep_house(&self) -> Result<(), String> {
        let client = Loan::of(&self.pool).await.map_err(|error| error.to_string())?;
        let keep = self.keep.as_secs_f64();
        let dropped = patiently(self.patience * 2, async {
            client.query_one(CREATE_PARTITIONS, &[]).await?;
            client.query_one(DROP_PARTITIONS, &[&keep]).await
        });
        let dropped = dropped.await.map_err(|error| error.to_string())?.map_err(|error| explain(&error))?;
        client.give_back();
        tracing::debug!(dropped = dropped.get::<_, i32>(0), "partitions maintained");
        Ok(())
    }
}

fn report_outbox(source: Source, row: &tokio_postgres::Row) {
    let source = source.as_str();
    for (column, state) in names::OUTBOX_STATES.into_iter().enumerate() {
        #[allow(clippy::cast_precision_loss, reason = "row counts are far below 2^52")]
        gauge!(names::OUTBOX_ROWS, "source" => source, "state" => state)
            .set(row.get::<_, i64>(column) as f64);
    }
    gauge!(names::OUTBOX_OLDEST_DUE, "source" => source).set(row.get::<_, f64>(4));
    #[allow(clippy::cast_precision_loss, reason = "row counts are far below 2^52")]
    gauge!(names::OUTBOX_AT_RISK, "source" => source).set(row.get::<_, i64>(5) as f64);
}

/// Open tasks by label; several tables and several unknown types add up under one.
#[derive(Default)]
struct Open(std::collections::BTreeMap<(String, String), (f64, f64, f64)>);

impl Open {
    fn add(&mut self, task_type: String, state: String, tasks: i64, oldest: f64, over: i64) {
        let entry = self.0.entry((task_type, state)).or_default();
        #[allow(clippy::cast_precision_loss, reason = "task counts are far below 2^52")]
        {
            entry.0 += tasks as f64;
            entry.2 += over as f64;
        }
        entry.1 = entry.1.max(oldest);
    }

    /// Every known pair is set, so that one that emptied reads zero.
    fn publish(mut self) {
        use std::sync::{Mutex, PoisonError};
        static PUBLISHED: Mutex<std::collections::BTreeSet<(String, String)>> =
            Mutex::new(std::collections::BTreeSet::new());
        let mut published = PUBLISHED.lock().unwrap_or_else(PoisonError::into_inner);
        for pair in published.iter() {
            self.0.entry(pair.clone()).or_default();
        }
        let mut over_sla = std::collections::BTreeMap::<String, f64>::new();
        for ((task_type, state), (tasks, oldest, over)) in &self.0 {
            let labels = [("task_type", task_type.clone()), ("state", state.clone())];
            gauge!(names::TASKS_OPEN, &labels).set(*tasks);
            gauge!(names::TASK_OLDEST_OPEN, &labels).set(*oldest);
            *over_sla.entry(task_type.clone()).or_default() += over;
        }
        for (task_type, over) in over_sla {
            gauge!(names::TASKS_OVER_SLA, "task_type" => task_type).set(over);
        }
        published.extend(self.0.into_keys());
    }
}

/// `taskgaug` in ASCII.
const TURN: &str = "SELECT pg_try_advisory_xact_lock(8386110886273709415)";
const OUTBOX: &str = include_str!("outbox_gauges.sql");
const LANES: &str = include_str!("lane_gauges.sql");
const SEALED: &str = include_str!("sealed_gauges.sql");
/// The name in the statement, replaced by the configured one.
const SDK_TABLE: &str = "adcp_task_webhook_outbox";
const DATABASE: &str = include_str!("database_gauges.sql");
const WATCHED: &str = include_str!("open_tasks.sql");
const CREATE_PARTITIONS: &str = "SELECT taskbell.create_partitions()";
const DROP_PARTITIONS: &str = "SELECT taskbell.drop_partitions($1 * interval '1 second')";
/// At the default beat of 15 s, a minute: it reads every row that is owed.
const EXPIRE_BEATS: u32 = 4;
/// At the default beat of 15 s, an hour.
const HOUSEKEEPING_BEATS: u32 = 240;
