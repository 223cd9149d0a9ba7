//! Who keeps old rows from being removed: long transactions, prepared ones, replication slots.
//! They make the hot table grow, and long writers keep the daemon from falling asleep.

use std::time::Duration;

use tokio_postgres::{Error, Transaction};

use super::finding::{Findings, for_people};

/// What has been open for longer than `long` is named.
pub(super) async fn holders(
    transaction: &Transaction<'_>,
    long: Duration,
    found: &mut Findings,
) -> Result<(), Error> {
    transactions(transaction, long, found).await?;
    prepared(transaction, long, found).await?;
    slots(transaction, found).await
}

async fn transactions(
    transaction: &Transaction<'_>,
    long: Duration,
    found: &mut Findings,
) -> Result<(), Error> {
    let rows = transaction.query(TRANSACTIONS, &[&long.as_secs_f64()]).await?;
    let sees_all: bool = transaction.query_one(SEES_ALL, &[]).await?.get(0);
    if !sees_all {
        found.warn(
            "transactions",
            "those of other roles cannot be seen",
            "run `check` as a role that may, or GRANT pg_read_all_stats to this one",
        );
    } else if rows.is_empty() {
        found.ok("transactions", format!("none older than {}", humantime::format_duration(long)));
    }
    for row in rows {
        let (pid, user): (i32, Option<&str>) = (row.get(0), row.get(1));
        let (application, from, state): (&str, &str, Option<&str>) = (row.get(2), row.get(3), row.get(4));
        found.warn(
            "transactions",
            format!(
                "pid {pid} ({}, application {application:?}, from {from}) has been in a transaction for {}, {}",
                user.unwrap_or("?"),
                for_people(row.get(5)),
                state.unwrap_or("state unknown"),
            ),
            format!("end it there, or SELECT pg_terminate_backend({pid}); idle_in_transaction_session_timeout prevents it"),
        );
    }
    Ok(())
}

async fn prepared(transaction: &Transaction<'_>, long: Duration, found: &mut Findings) -> Result<(), Error> {
    for row in transaction.query(PREPARED, &[&long.as_secs_f64()]).await? {
        let (gid, owner, database): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let literal = gid.replace('\'', "''");
        found.warn(
            "transactions",
            format!("'{literal}' of {owner} has been prepared for {}", for_people(row.get(3))),
            format!("COMMIT PREPARED '{literal}' or ROLLBACK PREPARED '{literal}' in database {database}"),
        );
    }
    Ok(())
}

async fn slots(transaction: &Transaction<'_>, found: &mut Findings) -> Result<(), Error> {
    for row in transaction.query(SLOTS, &[]).await? {
        let replica = Replica {
            slot: row.get(0),
            standby: row.get(1),
            connected: row.get(2),
            age: row.get(3),
            wal: row.get(4),
        };
        replica.judge(found);
    }
    Ok(())
}

struct Replica<'a> {
    /// Its slot; without one it is known by its application's name.
    slot: Option<&'a str>,
    standby: Option<&'a str>,
    connected: bool,
    /// Of the oldest rows that it keeps, in transactions.
    age: Option<i64>,
    /// Bytes that it keeps.
    wal: Option<i64>,
}

impl Replica<'_> {
    fn judge(&self, found: &mut Findings) {
        let who = match self.slot {
            Some(slot) => format!("slot {slot}"),
            None => format!("standby {:?}", self.standby.unwrap_or_default()),
        };
        if self.connected {
            if let Some(age) = self.age.filter(|age| *age > MANY_TRANSACTIONS) {
                found.warn(
                    "slots",
                    format!("{who} keeps rows of the last {age} transactions from vacuum"),
                    "end the long query there; max_standby_streaming_delay or hot_standby_feedback prevents it",
                );
            }
            return;
        }
        let slot = self.slot.unwrap_or_default();
        let remedy = format!("bring its consumer back, or SELECT pg_drop_replication_slot('{slot}')");
        if let Some(age) = self.age {
            let says =
                format!("{who} has no consumer and keeps rows of the last {age} transactions from vacuum");
            found.warn("slots", says, &remedy);
        }
        if let Some(wal) = self.wal.filter(|wal| *wal > MUCH_WAL) {
            let says = format!("{who} has no consumer and keeps {} GiB of WAL on the disk", wal >> 30);
            found.warn("slots", says, &remedy);
        }
    }
}

const TRANSACTIONS: &str = include_str!("transactions.sql");
const PREPARED: &str = include_str!("prepared.sql");
const SLOTS: &str = include_str!("slots.sql");
const SEES_ALL: &str = "SELECT pg_has_role('pg_read_all_stats', 'USAGE')";
/// Enough to fill a disk in a while.
const MUCH_WAL: i64 = 1 << 30;
/// Some minutes of a very busy seller, days of most.
const MANY_TRANSACTIONS: i64 = 5_000_000;

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{Ok, Warn};
    use super::*;

    #[test]
    fn a_replica_is_named_when_it_is_away_or_far_behind() {
        let well =
            || Replica { slot: Some("a"), standby: None, connected: true, age: Some(90), wal: Some(4 << 30) };
        for (replica, expected) in [
            (well(), Ok),
            (Replica { age: Some(6_000_000), ..well() }, Warn),
            (Replica { slot: None, standby: Some("b"), age: Some(6_000_000), ..well() }, Warn),
            (Replica { connected: false, ..well() }, Warn),
            (Replica { connected: false, age: None, ..well() }, Warn),
            (Replica { connected: false, age: None, wal: Some(1 << 20), ..well() }, Ok),
        ] {
            let mut found = Findings::default();
            replica.judge(&mut found);
            assert_eq!(found.worst(), expected, "{found:?}");
        }
    }
}
