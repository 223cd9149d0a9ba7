//! Keeps the bell silent while we are awake, and knows when it is safe to sleep again.
//!
//! A transaction with a pending `NOTIFY` takes a cluster-wide lock at commit, through its
//! fsync; a busy seller must not pay that. So a daemon that is awake asks for the exclusive side
//! of an advisory lock, and the triggers ring only if they can share it (a *waiting* exclusive
//! request already refuses them).
//!
//! No wake-up is lost on the way back to sleep. [`Gate::open`] gives the lock back, or withdraws
//! the request, and then takes a transaction id of its own, the [`Horizon`]. A transaction that
//! stayed silent because of us had a smaller one, because it had already written when its
//! trigger looked at the lock. Once the snapshot's `xmin` has reached the horizon, every one of
//! them has ended: the look that follows sees its rows, or it was rolled back. Whoever comes
//! later finds the lock free, and rings.
//!
//! The snapshot's own `xmax` would not do as a horizon: it is one past the latest transaction
//! that has *completed*, so one that is still open may have an id at or past it, and `xmin`
//! would seem to have passed it.
//!
//! ```text
//!   asleep (a bell: look) ──quick pace──▶ awake (lock asked for or held, triggers silent)
//!     ▲                                     │ slow for the linger time
//!     │                                     ▼
//!     └────────────── xmin ≥ X ──────── dozing (lock free, triggers ring; polls until X has passed)
//! ```

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use tokio_util::sync::CancellationToken;

use super::session::{Connect, ConnectError, Session, describe};

/// A transaction id taken after the bell was given back: greater than that of every transaction
/// that may have stayed silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Horizon(i64);

/// The steps of the protocol, on one connection. [`Doorbell`] drives them; the tests call them
/// one by one to explore interleavings.
pub struct Gate<'a>(pub &'a Client);

impl Gate<'_> {
    /// Prepares the connection: waiting for the lock never lasts longer than `patience`,
    /// because a session that waits for a lock holds a snapshot.
    ///
    /// # Errors
    /// [`DoorbellError::Database`] when the connection is lost.
    pub async fn set_up(&self, patience: Duration) -> Result<(), DoorbellError> {
        let patience = patience.as_millis();
        let limits = format!("SET lock_timeout = {patience}; SET synchronous_commit = off");
        Ok(self.0.batch_execute(&limits).await?)
    }

    /// Asks for silence. False when a seller's transaction that already shares the lock did not
    /// end in time: ask again; until then the bell may ring, which costs sellers but loses
    /// nothing. From the moment of asking, no trigger rings.
    ///
    /// # Errors
    /// [`DoorbellError::Database`] when the connection is lost.
    pub async fn close(&self) -> Result<bool, DoorbellError> {
        match self.ask(LOCK, &[(&DOORBELL_KEY, Type::INT8)]).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets the bell ring again and says which transactions may have stayed silent: those
    /// before the horizon.
    ///
    /// # Errors
    /// [`DoorbellError::Database`] when the connection is lost.
    pub async fn open(&self) -> Result<Horizon, DoorbellError> {
        // Two statements, in this order: the horizon must be read after the lock is free.
        self.ask(UNLOCK, &[]).await?;
        Ok(Horizon(self.ask(HORIZON, &[]).await?.get(0)))
    }

    /// Whether every transaction before the horizon has ended. Look at the table after that.
    ///
    /// # Errors
    /// [`DoorbellError::Database`] when the connection is lost.
    pub async fn passed(&self, horizon: Horizon) -> Result<bool, DoorbellError> {
        Ok(self.ask(PASSED, &[(&horizon.0, Type::INT8)]).await?.get(0))
    }

    /// Whether another daemon is awake: what it silences we hear only from it, and not at all
    /// if it is killed.
    ///
    /// # Errors
    /// [`DoorbellError::Database`] when the connection is lost.
    pub async fn held_by_another(&self) -> Result<bool, DoorbellError> {
        Ok(self.ask(HELD, &[(&DOORBELL_KEY, Type::INT8)]).await?.get(0))
    }

    /// Whether sellers who ring keep each other waiting: how many commits stand in line for the lock
    /// under which notifications are queued.
    ///
    /// # Errors
    /// [`DoorbellError::Database`] when the connection is lost.
    pub async fn in_line(&self) -> Result<i64, DoorbellError> {
        Ok(self.ask(IN_LINE, &[]).await?.get(0))
    }

    /// One row, in one round trip: these statements are too small to be worth preparing.
    async fn ask(
        &self,
        statement: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Row, tokio_postgres::Error> {
        let mut rows = self.0.query_typed(statement, parameters).await?;
        Ok(rows.pop().unwrap_or_else(|| unreachable!("each of them is a SELECT without FROM")))
    }
}

/// The worker's handle on the doorbell: requests to a task that owns the connection.
///
/// Losing the connection frees the lock, so it can only make the bell ring more often.
#[derive(Clone)]
pub struct Doorbell {
    requests: mpsc::UnboundedSender<Request>,
}

enum Request {
    Close,
    Open(oneshot::Sender<Horizon>),
    Passed(Horizon, oneshot::Sender<bool>),
    HeldByAnother(oneshot::Sender<bool>),
    InLine(oneshot::Sender<i64>),
}

impl Doorbell {
    /// A handle, and the task to run beside the worker until `stop` is cancelled.
    pub fn new(
        connect: Connect,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (requests, inbox) = mpsc::unbounded_channel();
        let task = async move {
            let mut porter = Porter { connect, inbox, wants_silence: false };
            tokio::select! {
                () = stop.cancelled() => {}
                () = porter.run() => {}
            }
        };
        (Self { requests }, task)
    }

    /// Asks for silence, without waiting for it.
    pub fn close(&self) {
        let _ = self.requests.send(Request::Close);
    }

    /// Lets the bell ring again: asked for by this call, answered when that is so. Cancel safe.
    ///
    /// # Errors
    /// [`DoorbellError::Unavailable`] while there is no connection: stay awake and ask again.
    pub fn open(&self) -> impl Future<Output = Result<Horizon, DoorbellError>> + Send + use<> {
        self.ask(Request::Open)
    }

    /// Whether every transaction before the horizon has ended.
    ///
    /// # Errors
    /// [`DoorbellError::Unavailable`] while there is no connection.
    pub fn passed(
        &self,
        horizon: Horizon,
    ) -> impl Future<Output = Result<bool, DoorbellError>> + Send + use<> {
        self.ask(move |answer| Request::Passed(horizon, answer))
    }

    /// Whether another daemon keeps the bell silent. Only to be asked while we do not.
    ///
    /// # Errors
    /// [`DoorbellError::Unavailable`] while there is no connection.
    pub fn held_by_another(&self) -> impl Future<Output = Result<bool, DoorbellError>> + Send + use<> {
        self.ask(Request::HeldByAnother)
    }

    /// How many commits of sellers wait for one that rings.
    ///
    /// # Errors
    /// [`DoorbellError::Unavailable`] while there is no connection.
    pub fn in_line(&self) -> impl Future<Output = Result<i64, DoorbellError>> + Send + use<> {
        self.ask(Request::InLine)
    }

    /// The order of the calls is the order of the requests, whoever waits for the answers.
    fn ask<T: Send + 'static, R>(
        &self,
        request: R,
    ) -> impl Future<Output = Result<T, DoorbellError>> + Send + use<T, R>
    where
        R: FnOnce(oneshot::Sender<T>) -> Request,
    {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(request(answer));
        async move {
            // The worker has more to do than to wait for a database that does not answer.
            timeout(ANSWER_PATIENCE, answered)
                .await
                .ok()
                .and_then(Result::ok)
                .ok_or(DoorbellError::Unavailable)
        }
    }
}

/// Owns the connection.
struct Porter {
    connect: Connect,
    inbox: mpsc::UnboundedReceiver<Request>,
    /// What the worker asked for last. Neither a question in between nor a new connection changes it.
    wants_silence: bool,
}

impl Porter {
    async fn run(&mut self) {
        loop {
            let reason = match (self.connect)().await {
                Ok(session) => self.serve(session).await,
                Err(ConnectError(reason)) => reason,
            };
            if self.inbox.is_closed() {
                return;
            }
            tracing::warn!(reason, "doorbell connection lost, reconnecting");
            // Whoever waits for an answer must not wait for the database to come back. Who hears none stays awake.
            let pause = sleep(RECONNECT_DELAY);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    request = self.inbox.recv() => match request {
                        Some(request) => self.wants_silence |= matches!(request, Request::Close),
                        None => return,
                    },
                }
            }
        }
    }

    /// Serves requests until the connection is lost; says why it was.
    async fn serve(&mut self, session: Session) -> String {
        let Session { client, mut messages } = session;
        let gate = Gate(&client);
        tokio::select! {
            ended = async { while let Some(Ok(_)) = messages.next().await {} } => {
                let () = ended;
                "the connection was closed".to_owned()
            }
            lost = self.answer(&gate) => match lost {
                DoorbellError::Database(error) => describe(&error),
                DoorbellError::Silent => "no answer came".to_owned(),
                DoorbellError::Unavailable => "the worker has gone".to_owned(),
            },
        }
    }

    async fn answer(&mut self, gate: &Gate<'_>) -> DoorbellError {
        if let Err(error) = promptly(gate.set_up(PATIENCE)).await {
            return error;
        }
        let mut silence = Silence::new();
        loop {
            let request = tokio::select! {
                biased;
                request = self.inbox.recv() => match request {
                    Some(request) => request,
                    None => return DoorbellError::Unavailable,
                },
                () = sleep_until(silence.next_try), if self.wants_silence && !silence.is_ours => {
                    match promptly(gate.close()).await {
                        Ok(is_ours) => silence.tried(is_ours),
                        Err(error) => return error,
                    }
                    continue;
                }
            };
            // A worker that no longer waits for its answer is no fault.
            let answered = match request {
                Request::Close => {
                    self.wants_silence = true;
                    Ok(())
                }
                Request::Open(answer) => {
                    self.wants_silence = false;
                    silence = Silence::new();
                    promptly(gate.open()).await.map(|horizon| {
                        let _ = answer.send(horizon);
                    })
                }
                Request::Passed(horizon, answer) => promptly(gate.passed(horizon)).await.map(|passed| {
                    let _ = answer.send(passed);
                }),
                Request::HeldByAnother(answer) => promptly(gate.held_by_another()).await.map(|held| {
                    let _ = answer.send(held);
                }),
                Request::InLine(answer) => promptly(gate.in_line()).await.map(|waiting| {
                    let _ = answer.send(waiting);
                }),
            };
            if let Err(error) = answered {
                return error;
            }
        }
    }
}

/// The lock on one connection: asked for again and again until it is ours.
struct Silence {
    is_ours: bool,
    next_try: Instant,
    pause: Duration,
}

impl Silence {
    fn new() -> Self {
        Self { is_ours: false, next_try: Instant::now(), pause: MIN_PAUSE }
    }

    fn tried(&mut self, is_ours: bool) {
        self.is_ours = is_ours;
        self.next_try = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
    }
}

/// A connection that does not answer such small questions has gone silent: another one is needed.
async fn promptly<T>(step: impl Future<Output = Result<T, DoorbellError>>) -> Result<T, DoorbellError> {
    timeout(STEP_PATIENCE, step).await.unwrap_or(Err(DoorbellError::Silent))
}

/// Why the doorbell could not answer.
#[derive(Debug, thiserror::Error)]
pub enum DoorbellError {
    /// The connection failed.
    #[error("the doorbell's connection failed")]
    Database(#[from] tokio_postgres::Error),
    /// No answer came.
    #[error("the doorbell's connection has gone silent")]
    Silent,
    /// There is no connection at the moment.
    #[error("the doorbell has no connection at the moment")]
    Unavailable,
}

/// `taskbell` in ASCII, the same number as in the triggers (migrations/V2__triggers.sql).
const DOORBELL_KEY: i64 = 8_386_110_886_190_083_180;
const LOCK: &str = "SELECT pg_advisory_lock($1)::text";
/// All of this session's, however often it asked.
const UNLOCK: &str = "SELECT pg_advisory_unlock_all()::text";
const HORIZON: &str = "SELECT pg_current_xact_id()::text::bigint";
const PASSED: &str = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= $1";
const HELD: &str = "SELECT NOT pg_try_advisory_xact_lock_shared($1)";
/// `PreCommit_Notify` locks object 0 of pg_database, of no database.
const IN_LINE: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND database = 0 \
                       AND classid = 'pg_database'::regclass AND objid = 0 AND NOT granted";
/// How long one request for the lock may wait, holding its snapshot.
const PATIENCE: Duration = Duration::from_millis(200);
/// Well above the patience of a request for the lock that stands before ours.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// For one step, on a database that is merely slow.
const STEP_PATIENCE: Duration = Duration::from_secs(5);
/// Between two requests; a seller's long transaction shares the lock until it ends.
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(2);
const RECONNECT_DELAY: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_one_in_the_triggers() {
        assert_eq!(DOORBELL_KEY, i64::from_be_bytes(*b"taskbell"));
        let triggers = include_str!("../../migrations/V2__triggers.sql");
        assert_eq!(triggers.matches(&DOORBELL_KEY.to_string()).count(), 2);
    }
}
