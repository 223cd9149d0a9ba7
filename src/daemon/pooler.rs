//! Finds out whether a pooler in transaction mode stands between us and the database.
//!
//! Such a pooler hands a session another backend for each transaction. `LISTEN`, the doorbell's
//! lock and prepared statements belong to a backend: notifications are lost, and a statement that
//! another process has prepared under the same name may answer in place of ours. So it is looked
//! for, instead of waited for. Seen from here: two sessions share one backend, or a session's
//! backend changes while another holds a transaction open.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::error::SqlState;
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
    let compared = timeout(PATIENCE, compare(&ours, &other)).await;
    compared.unwrap_or(Err(Lost::Silent)).map_err(|lost| ConnectError(lost.to_string()))
}

async fn compare(ours: &Client, other: &Client) -> Result<Pooling, Lost> {
    // Not to be taken for what another process has left under the same name.
    let mark = uuid::Uuid::new_v4().to_string();
    let statement = match ours.prepare(&format!("{BACKEND}, '{mark}'")).await {
        Err(error) if error.code() == Some(&SqlState::DUPLICATE_PSTATEMENT) => return Ok(FORGETFUL),
        statement => statement?,
    };
    for _ in 0..ROUNDS {
        let before = backend(ours).await?;
        // While its transaction lasts, this backend is nobody else's.
        other.batch_execute("BEGIN").await?;
        let shared = before == backend(other).await?;
        let again = timeout(PATIENCE / 4, ours.query_one(&statement, &[])).await;
        other.batch_execute("ROLLBACK").await?;
        match again {
            Ok(Ok(row)) if row.try_get(1).ok() != Some(mark.as_str()) => return Ok(FORGETFUL),
            Ok(Ok(row)) if shared || row.try_get(0).ok() != before => {
                return Ok(Pooling::Transactions { keeps_prepared: true });
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) if shared || error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME) => {
                return Ok(FORGETFUL);
            }
            Ok(Err(error)) => return Err(error.into()),
            // A pool of one backend has none for us now.
            Err(_) if shared => return Ok(FORGETFUL),
            Err(_) => return Err(Lost::Silent),
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

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("{}", explain(.0))]
    Database(#[from] Error),
    #[error("it does not answer, or a pooler before it does not")]
    Silent,
}

const FORGETFUL: Pooling = Pooling::Transactions { keeps_prepared: false };
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
