//! What is owed: whether anything waits that should have gone out, and what was given up.

use tokio_postgres::{Error, Row, Transaction};

use super::finding::{Findings, for_people};
use crate::daemon::config::Config;
use crate::daemon::sources::COLUMNS;

pub(super) async fn backlog(
    transaction: &Transaction<'_>,
    config: &Config,
    found: &mut Findings,
) -> Result<(), Error> {
    Backlog::of("", &transaction.query_one(OURS, &[]).await?).judge(found);
    if let Some(source) = &config.sealed {
        // What is wrong with the table itself has a line of its own.
        let complete = transaction.query_opt(COLUMNS, &[&source.table]).await?;
        if complete.is_some_and(|row| row.get::<_, Option<&str>>(0).is_none()) {
            let sql = THEIRS.replace("adcp_task_webhook_outbox", &source.table);
            Backlog::of("the SDK's outbox: ", &transaction.query_one(&sql, &[]).await?).judge(found);
        }
    }
    Ok(())
}

struct Backlog {
    /// Which outbox; nothing for ours.
    whose: &'static str,
    owed: i64,
    expired: i64,
    invalid: i64,
    /// For how many seconds a webhook could have been sent and was not.
    due: f64,
}

impl Backlog {
    /// Of a row: pending, in flight, expired, invalid, and seconds.
    fn of(whose: &'static str, row: &Row) -> Self {
        let owed = row.get::<_, i64>(0) + row.get::<_, i64>(1);
        Self { whose, owed, expired: row.get(2), invalid: row.get(3), due: row.get(4) }
    }

    fn judge(&self, found: &mut Findings) {
        let Self { whose, owed, expired, invalid, due } = *self;
        if due > LONG_DUE {
            found.fail(
                "webhooks",
                format!("{whose}{owed} owed, and one has been due for {}", for_people(due)),
                "`taskbell deliveries list --state pending` names them, `taskbell why ID` what each waits for; \
                 several daemons share a backlog",
            );
        } else {
            found.ok("webhooks", format!("{whose}{owed} owed, none due for long"));
        }
        for (state, count) in [("invalid", invalid), ("expired", expired)] {
            if count > 0 {
                found.warn(
                    "dead letters",
                    format!("{whose}{count} {state}"),
                    format!("`taskbell deliveries list --state {state}`: a person retries or cancels them"),
                );
            }
        }
    }
}

const OURS: &str = include_str!("backlog.sql");
const THEIRS: &str = include_str!("../../sealed_gauges.sql");
/// Seconds. A daemon that keeps up takes what is due within milliseconds, and after a failover within one
/// lease and the pause of a lane.
const LONG_DUE: f64 = 300.0;

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{Fail, Ok, Warn};
    use super::*;

    #[test]
    fn what_is_due_for_long_fails_and_dead_letters_warn() {
        let well = || Backlog { whose: "", owed: 9, expired: 0, invalid: 0, due: 299.0 };
        for (backlog, expected) in [
            (well(), Ok),
            (Backlog { invalid: 1, ..well() }, Warn),
            (Backlog { expired: 1, ..well() }, Warn),
            (Backlog { due: 301.0, ..well() }, Fail),
        ] {
            let mut found = Findings::default();
            backlog.judge(&mut found);
            assert_eq!(found.worst(), expected, "{found:?}");
        }
    }
}
