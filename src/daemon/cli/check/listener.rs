//! The way of a notification: is there a pooler that swallows it, does it come back, has the
//! queue room?

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Error, Transaction};

use super::finding::Findings;
use crate::daemon::database::{Connector, explain};
use crate::daemon::pooler::{self, Pooling};
use crate::listener::{CHANNEL, Session};

/// What stands before the database, if a look further makes sense: behind a pooler that forgets
/// prepared statements another process's may answer.
pub(super) async fn pooler(connector: &Connector, found: &mut Findings) -> Option<Pooling> {
    match pooler::look(connector).await {
        Ok(Pooling::Transactions { keeps_prepared: false }) => {
            found.broken("pooler", format!("{}; `taskbell run` refuses to start", pooler::FORGETS));
            None
        }
        Ok(Pooling::Transactions { keeps_prepared: true }) => {
            found.broken("pooler", pooler::DEAF);
            Some(Pooling::Transactions { keeps_prepared: true })
        }
        Ok(Pooling::None) => Some(Pooling::None),
        Err(error) => {
            found.broken("database", error.to_string());
            None
        }
    }
}

/// Whether a notification comes back. Not through a pooler in transaction mode, where it would
/// only by chance.
pub(super) async fn listener(connector: &Connector, found: &mut Findings) {
    match timeout(PATIENCE, round_trip(connector)).await {
        Ok(Ok(())) => found.ok("listener", "a notification came back"),
        Ok(Err(error)) => found.broken("listener", error),
        Err(_) => found.fail(
            "listener",
            "no notification came back",
            "connect past whatever stands before the database; until then webhooks wait for the safety poll",
        ),
    }
}

async fn round_trip(connector: &Connector) -> Result<(), String> {
    let Session { client, mut messages } = connector.connect().await.map_err(|error| error.to_string())?;
    let payload = format!("check {}", uuid::Uuid::new_v4());
    let sql = format!("LISTEN {CHANNEL}; NOTIFY {CHANNEL}, '{payload}'");
    let sent = client.batch_execute(&sql);
    tokio::pin!(sent);
    let mut done = false;
    loop {
        tokio::select! {
            answer = &mut sent, if !done => {
                answer.map_err(|error| explain(&error))?;
                done = true;
            }
            message = messages.next() => match message {
                Some(Ok(AsyncMessage::Notification(heard))) if heard.payload() == payload => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(explain(&error)),
                None => return Err("the connection was closed".to_owned()),
            },
        }
    }
}

/// When it is full, every commit that notifies fails, sellers' too.
pub(super) async fn queue(transaction: &Transaction<'_>, found: &mut Findings) -> Result<(), Error> {
    let usage: f64 = transaction.query_one("SELECT pg_notification_queue_usage()", &[]).await?.get(0);
    judge_queue(usage, found);
    Ok(())
}

fn judge_queue(usage: f64, found: &mut Findings) {
    let says = format!("{:.0} % full", usage * 100.0);
    if usage < NOTABLE_USAGE {
        found.ok("notify queue", says);
    } else {
        found.fail(
            "notify queue",
            says,
            "a session that listens is in a long transaction: end it, or every notifying commit will fail",
        );
    }
}

const PATIENCE: Duration = Duration::from_secs(3);
const NOTABLE_USAGE: f64 = 0.5;

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{Fail, Ok};
    use super::*;

    #[test]
    fn a_queue_that_fills_up_fails_before_it_is_full() {
        for (usage, expected) in [(0.0, Ok), (0.49, Ok), (0.5, Fail), (1.0, Fail)] {
            let mut found = Findings::default();
            judge_queue(usage, &mut found);
            assert_eq!(found.worst(), expected, "{usage}");
        }
    }
}
