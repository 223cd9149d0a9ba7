//! One connection outside the pool, with its messages as a stream.
//!
//! The listener and the doorbell each hold one for as long as it lives. How to reach the
//! database (TLS, passwords, several hosts) is the edge's business: it hands in a [`Connect`].

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::future::BoxFuture;
use futures_util::stream::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{AsyncMessage, Client, Connection};

/// Opens one connection. Must give up by itself after some seconds.
pub type Connect = Arc<dyn Fn() -> BoxFuture<'static, Result<Session, ConnectError>> + Send + Sync>;

pub(super) type Messages = Pin<Box<dyn Stream<Item = Result<AsyncMessage, tokio_postgres::Error>> + Send>>;

/// A connection: queries go through the client, and move only while the messages are polled.
pub struct Session {
    /// Sends queries.
    pub client: Client,
    /// Notifications and notices; polling it drives the connection. Ends when it closes.
    pub messages: Messages,
}

impl Session {
    /// Wraps what `tokio_postgres::connect` gave.
    #[must_use]
    pub fn new<S, T>(client: Client, mut connection: Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let messages = poll_fn(move |context| connection.poll_message(context));
        Self { client, messages: Box::pin(messages) }
    }
}

/// Why no connection could be made. Carries no password.
#[derive(Debug, thiserror::Error)]
#[error("no connection to the database: {0}")]
pub struct ConnectError(pub String);

/// `tokio_postgres::Error` prints only its kind; this says what the server said.
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": "),
    }
}
