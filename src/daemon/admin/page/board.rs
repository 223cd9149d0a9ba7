//! What the page shows, read on one timer while somebody looks, and shared by all who do.
//!
//! The connection is the board's own, and ends with the last viewer: claims never wait for it.
//! It only reads, gives up soon, and rests many times as long as the database took.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::daemon::database::{Connector, explain};
use crate::webhook::FailureReason;

/// Shows the same to everybody who looks.
pub struct Board {
    connector: Connector,
    sealed_table: Option<String>,
    health: Health,
    latest: watch::Sender<Option<Arc<str>>>,
    seats: Arc<Semaphore>,
    wanted: Notify,
}

/// What the daemon knows of itself.
#[derive(Clone)]
pub struct Health {
    /// Whether the LISTEN connection is up.
    pub listener_up: watch::Receiver<bool>,
    /// Whether the outbox can be read and written.
    pub outbox_up: watch::Receiver<bool>,
}

/// One viewer's place.
pub(super) struct Seat {
    latest: watch::Receiver<Option<Arc<str>>>,
    _taken: OwnedSemaphorePermit,
}

impl Seat {
    /// The next view; the first one at once where others look already. `None` when the board ends.
    pub(super) async fn next(&mut self) -> Option<Arc<str>> {
        loop {
            self.latest.changed().await.ok()?;
            if let Some(view) = self.latest.borrow_and_update().clone() {
                return Some(view);
            }
        }
    }
}

impl Board {
    /// A board that nobody looks at yet. `sealed_table`: the SDK's outbox, where it is served.
    #[must_use]
    pub fn new(connector: Connector, sealed_table: Option<String>, health: Health) -> Self {
        let seats = Arc::new(Semaphore::new(MAX_VIEWERS));
        Self {
            connector,
            sealed_table,
            health,
            latest: watch::Sender::new(None),
            seats,
            wanted: Notify::new(),
        }
    }

    /// A place for one more viewer, if there is one left.
    pub(super) fn watch(&self) -> Option<Seat> {
        let taken = self.seats.clone().try_acquire_owned().ok()?;
        let mut latest = self.latest.subscribe();
        latest.mark_changed();
        self.wanted.notify_one();
        Some(Seat { latest, _taken: taken })
    }

    /// Reads while somebody looks, until `stop` is cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let reading = async {
            loop {
                self.wanted.notified().await;
                let mut client = None;
                while self.latest.receiver_count() > 0 {
                    let began = Instant::now();
                    let view = self.look(&mut client).await;
                    self.latest.send_replace(Some(view.to_string().into()));
                    sleep((began.elapsed() * REST).clamp(REFRESH, LONGEST)).await;
                }
                // Whoever comes next waits for a fresh one.
                self.latest.send_replace(None);
            }
        };
        stop.run_until_cancelled(reading).await;
    }

    async fn look(&self, client: &mut Option<Client>) -> Value {
        let mut view = match timeout(PATIENCE, self.read(client)).await {
            Ok(Ok(view)) => view,
            Ok(Err(problem)) => {
                *client = None;
                json!({ "database": problem })
            }
            Err(_) => {
                *client = None;
                json!({ "database": "it does not answer in time" })
            }
        };
        view["listener"] = (*self.health.listener_up.borrow()).into();
        view["outbox"] = (*self.health.outbox_up.borrow()).into();
        view
    }

    async fn read(&self, client: &mut Option<Client>) -> Result<Value, String> {
        let client = match client {
            Some(client) => client,
            None => {
                let new = self.connector.client().await.map_err(|error| error.to_string())?;
                new.batch_execute(SETTINGS).await.map_err(|error| explain(&error))?;
                client.insert(new)
            }
        };
        self.view(client).await.map_err(|error| explain(&error))
    }

    async fn view(&self, client: &Client) -> Result<Value, tokio_postgres::Error> {
        let (mut open, mut tasks) = (0, Vec::new());
        for table in client.query(TASKS, &[]).await? {
            let sql: String = table.get(0);
            for row in client.query(&sql, &[]).await? {
                let nth: i64 = row.get(2);
                open += if nth == 1 { row.get::<_, i64>(1) } else { 0 };
                tasks.push(row.get::<_, Value>(0));
            }
        }
        by_age(&mut tasks);
        tasks.reverse();
        tasks.truncate(ROWS);
        let (mut dead, mut letters) = counted(client.query(DEAD, &[]).await?);
        if let Some(table) = &self.sealed_table {
            let sql = SEALED_DEAD.replace(SDK_TABLE, table);
            let (more, theirs) = counted(client.query(&sql, &[]).await?);
            dead += more;
            letters.extend(theirs);
        }
        by_age(&mut letters);
        letters.truncate(ROWS);
        let (closed, lanes) = counted(client.query(LANES, &[]).await?);
        let (_, attempts) = counted(client.query(ATTEMPTS, &[]).await?);
        Ok(json!({
            "open": open, "tasks": tasks, "dead": dead, "letters": letters, "closed": closed, "lanes": lanes,
            "attempts": attempts,
        }))
    }
}

/// Rows with the meaning of their reasons, and the count that stands in each.
fn counted(rows: Vec<tokio_postgres::Row>) -> (i64, Vec<Value>) {
    let count = rows.first().map_or(0, |row| row.get(1));
    let explained = |row: &tokio_postgres::Row| {
        let mut row: Value = row.get(0);
        let reason = row["reason"].as_str().and_then(|reason| reason.parse::<FailureReason>().ok());
        row["because"] = reason.map(FailureReason::explain).into();
        row
    };
    (count, rows.iter().map(explained).collect())
}

/// The newest first.
fn by_age(rows: &mut [Value]) {
    let age = |row: &Value| row["age"].as_f64().unwrap_or(0.0);
    rows.sort_by(|a, b| age(a).total_cmp(&age(b)));
}

const SETTINGS: &str = "SET default_transaction_read_only = on; SET statement_timeout = '2s'";
const TASKS: &str = include_str!("tasks.sql");
const ATTEMPTS: &str = include_str!("attempts.sql");
const LANES: &str = include_str!("lanes.sql");
const DEAD: &str = include_str!("dead.sql");
const SEALED_DEAD: &str = include_str!("sealed_dead.sql");
/// The name in the statement, replaced by the configured one.
const SDK_TABLE: &str = "adcp_task_webhook_outbox";
/// Rows in each list; written out in the statements, so that they are planned for so few.
const ROWS: usize = 20;
/// For a whole view, connecting included.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const REFRESH: Duration = Duration::from_secs(2);
/// How much longer than a look the board rests: it takes a tenth of one connection's time.
const REST: u32 = 9;
/// But whoever waits for a database that hangs hears of it again.
const LONGEST: Duration = Duration::from_secs(20);
/// Each holds a connection to the admin listener.
const MAX_VIEWERS: usize = 32;
