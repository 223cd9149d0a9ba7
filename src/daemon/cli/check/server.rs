//! The server: its version, whether it takes writes, its clock, and settings that hurt.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio_postgres::{Error, Transaction};

use super::finding::Findings;

pub(super) async fn server(transaction: &Transaction<'_>, found: &mut Findings) -> Result<(), Error> {
    let statement = transaction.prepare(SERVER).await?;
    let asked = seconds_here();
    let row = transaction.query_one(&statement, &[]).await?;
    let answered = seconds_here();
    version(row.get(0), row.get(1), row.get(2), found);
    writable(row.get(3), row.get(4), found);
    // The server looked at its clock somewhere between the two.
    clock(row.get::<_, f64>(5) - f64::midpoint(asked, answered), found);
    settings(row.get(6), row.get(7), row.get(8), found);
    for row in transaction.query(REPLICA_ROLES, &[]).await? {
        let whose: String = row.get(0);
        found.fail(
            "settings",
            format!("session_replication_role is replica for {whose}: triggers do not fire, nothing is owed"),
            "ALTER ROLE or DATABASE … RESET session_replication_role",
        );
    }
    Ok(())
}

fn version(version: &str, number: i32, role: &str, found: &mut Findings) {
    let says = format!("PostgreSQL {version} as {role}");
    if number >= OLDEST {
        found.ok("database", says);
    } else {
        found.fail("database", says, "at least 14 is needed");
    }
}

fn writable(standby: bool, read_only: bool, found: &mut Findings) {
    if standby {
        found.fail(
            "primary",
            "this is a standby: it neither takes writes nor listens",
            "point database.url at the primary, or name every host in it, with target_session_attrs=read-write",
        );
    } else if read_only {
        found.fail(
            "primary",
            "read-only (default_transaction_read_only): nothing can be claimed",
            "find out who set it and why, then ALTER DATABASE, ROLE or SYSTEM … RESET default_transaction_read_only",
        );
    } else {
        found.ok("primary", "writable");
    }
}

fn clock(skew: f64, found: &mut Findings) {
    let says = format!("{skew:+.1} s between the database and here");
    let remedy = "synchronise the time of this machine and of the database (NTP)";
    if skew.abs() >= REFUSED_SKEW {
        found.fail("clock", format!("{says}: receivers refuse signatures that are a minute off"), remedy);
    } else if skew.abs() >= NOTABLE_SKEW {
        found.warn("clock", says, remedy);
    } else {
        found.ok("clock", says);
    }
}

fn settings(isolation: &str, fsync: bool, ours_are_kept: bool, found: &mut Findings) {
    if isolation != "read committed" {
        found.warn(
            "settings",
            format!(
                "default_transaction_isolation is {isolation}: claims of several daemons fail over each other"
            ),
            "ALTER ROLE … SET default_transaction_isolation = 'read committed' for the daemon's role",
        );
    }
    if !fsync {
        found.warn(
            "settings",
            "fsync is off: a crash of the server may lose what is owed",
            "turn it on, but for tests",
        );
    }
    if !ours_are_kept {
        found.warn(
            "settings",
            "the session has not taken our settings: commits wait for the disk, statements have no end of their own, \
             and claims may read whole tables",
            "a pooler drops them: ALTER ROLE … SET synchronous_commit = off, statement_timeout = '30s', \
             plan_cache_mode = force_generic_plan, enable_seqscan = off, enable_bitmapscan = off, \
             idle_in_transaction_session_timeout = '1min' for the daemon's role",
        );
    }
}

fn seconds_here() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

const SERVER: &str = include_str!("server.sql");
const REPLICA_ROLES: &str = include_str!("replica_roles.sql");
/// CREATE OR REPLACE TRIGGER came with 14.
const OLDEST: i32 = 140_000;
const NOTABLE_SKEW: f64 = 5.0;
/// Receivers allow a minute; half of it is left for the way.
const REFUSED_SKEW: f64 = 30.0;

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Fail, Ok, Warn};
    use super::*;

    fn check(expected: Severity, judge: impl FnOnce(&mut Findings)) {
        let mut found = Findings::default();
        judge(&mut found);
        assert_eq!(found.worst(), expected, "{found:?}");
    }

    #[test]
    fn a_server_that_is_too_old_fails() {
        check(Fail, |found| version("13.9", 130_009, "r", found));
        check(Ok, |found| version("14.0", 140_000, "r", found));
    }

    #[test]
    fn a_clock_that_is_off_warns_long_before_receivers_refuse() {
        for (skew, expected) in
            [(0.2, Ok), (-4.9, Ok), (6.0, Warn), (-29.0, Warn), (31.0, Fail), (-90.0, Fail)]
        {
            check(expected, |found| clock(skew, found));
        }
    }
}
