//! Wakes the worker: a `LISTEN` connection of its own that proves it is alive.
//!
//! A notification is a hint; the table is the truth. So the listener subscribes first and then
//! says so ([`Heard::connected`]), at which the worker looks at the table: whatever was committed
//! while nobody listened is found by that look. A half-open socket gives no error and a pooler
//! in transaction mode swallows notifications, so every few seconds the listener notifies
//! itself, and takes a probe that does not come back for a lost connection.

mod doorbell;
mod heard;
mod session;

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::AsyncMessage;
use tokio_util::sync::CancellationToken;

pub use doorbell::{Doorbell, DoorbellError, Gate, Horizon};
pub use heard::{HELP, Heard, Ringer, Wakes, wakes};
pub use session::{Connect, ConnectError, Session};

/// The channel on which triggers, operators and daemons ring.
pub const CHANNEL: &str = "taskbell";

/// Listens until it is cancelled, through any number of lost connections.
pub struct Listener {
    connect: Connect,
    ringer: Ringer,
    up: watch::Sender<bool>,
    probe_interval: Duration,
}

impl Listener {
    /// A listener, what it hears, and whether it is up.
    ///
    /// `probe_interval`: how often it proves itself; an answer is waited for as long again, at
    /// most [`PROBE_PATIENCE`].
    #[must_use]
    pub fn new(connect: Connect, probe_interval: Duration) -> (Self, Wakes, watch::Receiver<bool>) {
        let (ringer, wakes) = wakes();
        let (up, is_up) = watch::channel(false);
        (Self { connect, ringer, up, probe_interval }, wakes, is_up)
    }

    /// Runs until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = MIN_RECONNECT_DELAY;
        loop {
            let began = Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.listen() => ended,
            };
            self.up.send_replace(false);
            if began.elapsed() > STABLE {
                backoff = MIN_RECONNECT_DELAY;
            }
            tracing::warn!(reason = %ended, retry_in_ms = backoff.as_millis(), "listener lost, reconnecting");
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(MAX_RECONNECT_DELAY);
        }
    }

    /// One connection, from connecting to its loss.
    async fn listen(&self) -> Lost {
        let Session { client, mut messages } = match (self.connect)().await {
            Ok(session) => session,
            Err(error) => return Lost::Connect(error),
        };
        let subscribed = timeout(PROBE_PATIENCE, async {
            let own = drive(&mut messages, client.query_one(OWN_PID, &[])).await?.get::<_, i32>(0);
            drive(&mut messages, client.batch_execute(LISTEN)).await?;
            Ok(own)
        });
        let own = match subscribed.await {
            Ok(Ok(own)) => own,
            Ok(Err(lost)) => return lost,
            Err(_) => return Lost::Unanswered,
        };
        self.ringer.say(Heard { connected: true, ..Heard::default() });
        self.up.send_replace(true);
        loop {
            let probe = sleep(self.probe_interval);
            tokio::pin!(probe);
            loop {
                tokio::select! {
                    message = messages.next() => if let Err(lost) = self.hear(message, own) { return lost },
                    () = &mut probe => break,
                }
            }
            match timeout(PROBE_PATIENCE, self.probe(&client, &mut messages, own)).await {
                Ok(Ok(())) => {}
                Ok(Err(lost)) => return lost,
                Err(_) => return Lost::Silent,
            }
        }
    }

    /// Notifies itself and waits until it hears that.
    async fn probe(
        &self,
        client: &tokio_postgres::Client,
        messages: &mut session::Messages,
        own: i32,
    ) -> Result<(), Lost> {
        let notify = client.batch_execute(PROBE);
        tokio::pin!(notify);
        let (mut sent, mut heard) = (false, false);
        while !(sent && heard) {
            tokio::select! {
                answer = &mut notify, if !sent => { answer.map_err(Lost::Database)?; sent = true; }
                message = messages.next() => heard |= self.hear(message, own)?,
            }
        }
        Ok(())
    }

    /// Reacts to one message; whether it was our own probe.
    fn hear(
        &self,
        message: Option<Result<AsyncMessage, tokio_postgres::Error>>,
        own: i32,
    ) -> Result<bool, Lost> {
        match message {
            Some(Ok(AsyncMessage::Notification(notification))) => {
                if notification.payload() == PROBE_PAYLOAD {
                    return Ok(notification.process_id() == own);
                }
                self.ringer.say(Heard::bell(notification.payload()));
                Ok(false)
            }
            Some(Ok(_)) => Ok(false),
            Some(Err(error)) => Err(Lost::Database(error)),
            None => Err(Lost::Closed),
        }
    }
}

/// Polls the stream while a query runs, because it is the stream that moves the query's bytes.
async fn drive<T>(
    messages: &mut session::Messages,
    query: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Lost> {
    tokio::pin!(query);
    loop {
        tokio::select! {
            answer = &mut query => return answer.map_err(Lost::Database),
            message = messages.next() => match message {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Lost::Database(error)),
                None => return Err(Lost::Closed),
            },
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("{0}")]
    Connect(ConnectError),
    #[error("{}", session::describe(.0))]
    Database(tokio_postgres::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("no answer came to LISTEN")]
    Unanswered,
    #[error("no notification came back from a probe: is there a pooler in transaction mode in between?")]
    Silent,
}

const OWN_PID: &str = "SELECT pg_backend_pid()";
const LISTEN: &str = "LISTEN taskbell";
const PROBE_PAYLOAD: &str = "probe";
/// Not worth an fsync: a probe that a crash forgets is asked again.
const PROBE: &str = "SET synchronous_commit = off; NOTIFY taskbell, 'probe'";
/// A probe that takes longer than this is as good as lost.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(3);
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(50);
/// Short, because until it is up again only the safety poll finds work.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(5);
/// A connection that lasted this long was a good one: start over with the backoff.
const STABLE: Duration = Duration::from_secs(1);
