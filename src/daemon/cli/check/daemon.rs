//! Whether a daemon serves the database, and what the one on this machine says of itself. That one
//! writes, so it knows of a full disk, which cannot be seen from here; it need not run here at all.

use tokio_postgres::{Error, Transaction};

use super::super::DAEMON;
use super::super::health::daemon_says;
use super::finding::Findings;
use crate::daemon::config::Config;

/// What the database's sessions tell, wherever the daemon runs.
pub(super) async fn listens(transaction: &Transaction<'_>, found: &mut Findings) -> Result<(), Error> {
    let row = transaction.query_one(DAEMON, &[]).await?;
    let (listens, awake): (bool, bool) = (row.get(0), row.get(1));
    match (listens, awake) {
        // One that is awake has asked for the lock, and may be between two listening sessions.
        (_, true) => found.ok("daemon", "one is awake on this database"),
        (true, false) => found.ok("daemon", "one listens on this database"),
        (false, false) => found.warn(
            "daemon",
            "none listens on this database: what is owed waits",
            "start `taskbell run`; one that runs already says in its log why it does not listen",
        ),
    }
    Ok(())
}

/// What the one on this machine says.
pub(super) async fn here(config: &Config, found: &mut Findings) {
    for (path, remedy) in [
        ("/healthz", "end it: a new process is the only repair"),
        (
            "/readyz",
            "its log says why; outbox: it cannot write (read-only, disk full); listener: it hears no bell",
        ),
    ] {
        match daemon_says(config, path).await {
            Ok((true, says)) => found.ok("daemon", says),
            Ok((false, says)) => return found.fail("daemon", says, remedy),
            Err(error) => return found.ok("daemon", format!("{error:#}: not looked at")),
        }
    }
}
