//! The gauges that read the database, refreshed by one daemon of several.
//!
//! Whoever holds an advisory lock has the turn. The lock belongs to a session that is kept for
//! this alone, outside the pool: it ends with its daemon, and the server ends it when a daemon
//! that was frozen or cut off has not spoken for a few beats. Then another daemon has the turn.
//! Who has it not exports zeros, so that no value outlives the daemon that knew it was true; the
//! database that cannot be read for as long is not known either.
//!
//! ```text
//!   another's turn (zeros) ──lock is free──▶ our turn (refreshed at every beat)
//!     ▲                                        │ no answer: the session is closed, and asked for again;
//!     └── another has the lock, or ────────────┘ meanwhile the last values stand
//!         nothing refreshed for the lapse
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deadpool_postgres::{ClientWrapper, Pool};
use metrics::gauge;
use tokio::time::Instant;
use tokio_postgres::Row;

use super::database::explain;
use crate::metrics::{self as names, Label, TaskTypes};
use crate::outbox::{Loan, Source, patiently};

/// Where a daemon waits for its turn, and takes it.
pub struct Desk {
    pool: Pool,
    gauges: Gauges,
    /// How long an answer is waited for.
    patience: Duration,
    /// How long a turn lasts without a refresh.
    lapse: Duration,
    /// The session that has the lock.
    session: Option<ClientWrapper>,
    /// When values were last read; `None` while all are zero.
    refreshed: Option<Instant>,
}

impl Desk {
    /// At which nobody sits yet.
    #[must_use]
    pub fn new(pool: Pool, gauges: Gauges, patience: Duration, lapse: Duration) -> Self {
        Self { pool, gauges, patience, lapse, session: None, refreshed: None }
    }

    /// Refreshes the gauges if it is our turn, or becomes it now.
    ///
    /// # Errors
    /// The database did not answer, or with an error: a text for the log.
    pub async fn refresh(&mut self) -> Result<(), String> {
        let done = self.take_turn().await;
        match done {
            Ok(true) => self.refreshed = Some(Instant::now()),
            Ok(false) => self.forget(),
            Err(_) if self.refreshed.is_some_and(|then| then.elapsed() >= self.lapse) => self.forget(),
            Err(_) => {}
        }
        done.map(drop)
    }

    /// Whether it was our turn.
    async fn take_turn(&mut self) -> Result<bool, String> {
        let held = self.session.take().filter(|session| !session.is_closed());
        let Some(session) = (match held {
            // Behind a pooler it need not be the session that it was.
            Some(session) => self.asked(session).await?,
            None => self.sit_down().await?,
        }) else {
            return Ok(false);
        };
        let read = patiently(self.patience, self.gauges.read(&session)).await;
        let readings = read.map_err(|error| error.to_string())?.map_err(|error| explain(&error))?;
        self.gauges.show(&readings);
        // Only now: a session that does not answer is closed, which frees the lock.
        self.session = Some(session);
        Ok(true)
    }

    /// The session, if it still has the lock.
    async fn asked(&self, session: ClientWrapper) -> Result<Option<ClientWrapper>, String> {
        let ours = patiently(self.patience, has_turn(&session)).await;
        let ours = ours.map_err(|error| error.to_string())?.map_err(|error| explain(&error))?;
        Ok(ours.then_some(session))
    }

    /// A connection of the pool that got the lock.
    async fn sit_down(&self) -> Result<Option<ClientWrapper>, String> {
        let client = Loan::of(&self.pool).await.map_err(|error| error.to_string())?;
        // What counts reads whole tables.
        let settings = format!(
            "SET idle_session_timeout = {}; SET enable_seqscan = on; SET enable_bitmapscan = on",
            self.lapse.as_millis()
        );
        let ours = patiently(self.patience, async {
            let ours = has_turn(&client).await?;
            if ours {
                client.batch_execute(&settings).await?;
            }
            Ok(ours)
        });
        let ours = ours.await.map_err(|error| error.to_string())?;
        if ours.map_err(|error: tokio_postgres::Error| explain(&error))? {
            tracing::debug!("this daemon refreshes the gauges from now on");
            return Ok(Some(client.keep()));
        }
        client.give_back();
        Ok(None)
    }

    fn forget(&mut self) {
        if self.refreshed.take().is_some() {
            names::forget_shared(&self.gauges.types);
        }
    }
}

async fn has_turn(client: &tokio_postgres::Client) -> Result<bool, tokio_postgres::Error> {
    Ok(client.query_one(TURN, &[]).await?.get(0))
}

/// What is read, and how it is labelled.
pub struct Gauges {
    /// By task type, after how long an open task is over its limit.
    pub sla: BTreeMap<String, Duration>,
    /// Bounds labels.
    pub types: TaskTypes,
    /// The SDK's outbox, where it is served.
    pub sealed_table: Option<String>,
}

/// One look at the database: shown as a whole, or not at all.
struct Readings {
    outboxes: Vec<(Source, Row)>,
    lanes: Row,
    database: Row,
    open: Open,
}

impl Gauges {
    async fn read(&self, client: &tokio_postgres::Client) -> Result<Readings, tokio_postgres::Error> {
        let mut outboxes = vec![(Source::Native, client.query_one(OUTBOX, &[]).await?)];
        if let Some(table) = &self.sealed_table {
            let sql = SEALED.replace(SDK_TABLE, table);
            outboxes.push((Source::Sealed, client.query_one(&sql, &[]).await?));
        }
        let lanes = client.query_one(LANES, &[]).await?;
        let database = client.query_one(DATABASE, &[]).await?;
        let limits: Vec<f64> = self.sla.values().map(Duration::as_secs_f64).collect();
        let types: Vec<&String> = self.sla.keys().collect();
        let mut open = Open::default();
        for table in client.query(WATCHED, &[]).await? {
            let sql: String = table.get(0);
            for row in client.query(&sql, &[&types, &limits]).await? {
                open.add(self.types.label(row.get(0)), &row);
            }
        }
        Ok(Readings { outboxes, lanes, database, open })
    }

    fn show(&self, readings: &Readings) {
        for (source, row) in &readings.outboxes {
            show_outbox(*source, row);
        }
        for (column, state) in names::LANE_STATES.into_iter().enumerate() {
            gauge!(names::LANES, "state" => state).set(count(&readings.lanes, column));
        }
        gauge!(names::NOTIFY_QUEUE).set(readings.database.get::<_, f64>(0));
        gauge!(names::OLDEST_XMIN).set(readings.database.get::<_, f64>(1));
        readings.open.show(&self.types);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        gauge!(names::REFRESHED).set(now.as_secs_f64());
    }
}

fn show_outbox(source: Source, row: &Row) {
    let source = source.as_str();
    for (column, state) in names::OUTBOX_STATES.into_iter().enumerate() {
        gauge!(names::OUTBOX_ROWS, "source" => source, "state" => state).set(count(row, column));
    }
    gauge!(names::OUTBOX_OLDEST_DUE, "source" => source).set(row.get::<_, f64>(4));
    gauge!(names::OUTBOX_AT_RISK, "source" => source).set(count(row, 5));
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn count(row: &Row, column: usize) -> f64 {
    row.get::<_, i64>(column) as f64
}

/// Open tasks by type and state; several tables and several unknown types add up under one.
#[derive(Default)]
struct Open(BTreeMap<(String, String), OpenTasks>);

#[derive(Default, Clone, Copy)]
struct OpenTasks {
    tasks: f64,
    oldest: f64,
    over: f64,
}

impl Open {
    fn add(&mut self, task_type: String, row: &Row) {
        let entry = self.0.entry((task_type, row.get(1))).or_default();
        entry.tasks += count(row, 2);
        entry.oldest = entry.oldest.max(row.get(3));
        entry.over += count(row, 4);
    }

    /// Every pair is set, so that one that emptied reads zero.
    fn show(&self, types: &TaskTypes) {
        for task_type in types.labels() {
            let mut over = 0.0;
            for state in Label::OpenState.values(types) {
                let pair = (task_type.to_owned(), state);
                let found = self.0.get(&pair).copied().unwrap_or_default();
                if found.tasks > 0.0 {
                    names::expect(types, task_type);
                }
                over += found.over;
                let labels = [("task_type", pair.0), ("state", pair.1)];
                gauge!(names::TASKS_OPEN, &labels).set(found.tasks);
                gauge!(names::TASK_OLDEST_OPEN, &labels).set(found.oldest);
            }
            gauge!(names::TASKS_OVER_SLA, "task_type" => task_type.to_owned()).set(over);
        }
    }
}

/// `taskgaug` in ASCII. Of the session, and asked for at every beat.
const TURN: &str = "SELECT pg_try_advisory_lock(8386110886273709415)";
const OUTBOX: &str = include_str!("outbox_gauges.sql");
const LANES: &str = include_str!("lane_gauges.sql");
const SEALED: &str = include_str!("sealed_gauges.sql");
/// The name in the statement, replaced by the configured one.
const SDK_TABLE: &str = "adcp_task_webhook_outbox";
const DATABASE: &str = include_str!("database_gauges.sql");
const WATCHED: &str = include_str!("open_tasks.sql");
