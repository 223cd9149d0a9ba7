//! Whether another daemon would get its connections.

use tokio_postgres::{Error, Transaction};

use super::finding::Findings;
use crate::daemon::config::Config;

pub(super) async fn connections(
    transaction: &Transaction<'_>,
    config: &Config,
    found: &mut Findings,
) -> Result<(), Error> {
    // Beside the pool: the listener, the doorbell, and the page's reader.
    let needed = config.database.max_connections + 2 + usize::from(config.page.is_some());
    let needed = i64::try_from(needed).unwrap_or(i64::MAX);
    let row = transaction.query_one(CONNECTIONS, &[]).await?;
    let (free, whose): (i64, &str) = (row.get(0), row.get(1));
    let says = format!("{free} more may be made by {whose}, a daemon takes up to {needed}");
    if free >= needed {
        found.ok("connections", says);
    } else {
        found.warn("connections", says, "raise the limit, or lower database.max_connections");
    }
    Ok(())
}

const CONNECTIONS: &str = include_str!("connections.sql");
