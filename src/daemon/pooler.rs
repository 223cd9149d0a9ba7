//! Finds out whether a pooler in transaction mode stands between us and the database.
//!
//! Such a pooler hands a session another backend for each transaction. `LISTEN`, the doorbell's
//! lock and prepared statements belong to a backend: notifications are lost, and a statement that
//! another process has prepared under the same name may answer in place of ours. So it is looked
//! for, instead of waited for. Seen from here: two sessions share one backend, or a session's
//! backend changes while another holds a transaction open.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::database::{Connector, explain};
use crate::listener::ConnectError;

/// What stands in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Nothing that can be told from a server: one backend for each session.
    None,
    /// A backend for each transaction.
    Transactions {
        /// Whether prepared statements are found again on another backend.
        keeps_prepared: bool,
    },
}

/// Looks, on two connections of its own.
///
/// # Errors
/// [`ConnectError`] when the database cannot be reached or does not answer.
pub async fn look(connector: &Connector) -> Result<Pooling, ConnectError> {
    let (ours, other) = (connector.client().await?, connector.client().await?);
    match timeout(PATIENCE, compare(&ours, &other)).await {
        Ok(compared) => compared.map_err(|error| ConnectError(explain(&error))),
        Err(_) => Err(ConnectError("the database, or a pooler before it, does not answer".to_owned())),
    }
}

async fn compare(ours: &Client, other: &Client) -> Result<Pooling, Error> {
    let statement = ours.prepare(BACKEND).await?;
    for _ in 0..ROUNDS {
        let before = backend(ours).await?;
        // While its transaction lasts, this backend is nobody else's.
        other.batch_execute("BEGIN").await?;
        let taken = backend(other).await?;
        // A pool of one backend has none for us now.
        let again = timeout(PATIENCE / 4, ours.query_one(&statement, &[])).await;
        let after = again.ok().and_then(Result::ok).map(|row| row.get::<_, i32>(0));
        other.batch_execute("ROLLBACK").await?;
        if before == taken || before != after {
            return Ok(Pooling::Transactions { keeps_prepared: after.is_some() });
        }
    }
    Ok(Pooling::None)
}

/// By the simple protocol, which prepares nothing.
async fn backend(client: &Client) -> Result<Option<i32>, Error> {
    let messages = client.simple_query(BACKEND).await?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    }))
}

/// For whoever must not go on.
pub const FORGETS: &str = "a pooler in transaction mode stands before the database and forgets prepared \
                           statements: name the database itself in database.url, or a pool in session mode";
/// For whoever can, by polling.
pub const DEAF: &str = "a pooler in transaction mode stands before the database and loses notifications: \
                        webhooks wait for the safety poll; name the database itself in database.url, or a \
                        pool in session mode";
const BACKEND: &str = "SELECT pg_backend_pid()";
/// A pooler that takes its backends in turn may show the same one twice.
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(10);
