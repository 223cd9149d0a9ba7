//! The schema `taskbell`: numbered SQL files that record themselves.
//!
//! Each file under `migrations/` ends by inserting its number into `taskbell.schema_version`,
//! so it does not matter who ran it: [`apply`], psql, Flyway or Alembic. Forward only. A
//! migration and its lock live in one transaction, so a connection pooler in transaction mode
//! is no obstacle and a killed migrator leaves nothing half done.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

/// One numbered file.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Its number, counted from 1.
    pub version: i32,
    /// Its file name under `migrations/`.
    pub file: &'static str,
    /// Its text.
    pub sql: &'static str,
}

/// Every migration, in order.
pub const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, file: "V1__journal.sql", sql: include_str!("../migrations/V1__journal.sql") },
    Migration { version: 2, file: "V2__triggers.sql", sql: include_str!("../migrations/V2__triggers.sql") },
    Migration {
        version: 3,
        file: "V3__registrations.sql",
        sql: include_str!("../migrations/V3__registrations.sql"),
    },
    Migration { version: 4, file: "V4__operators.sql", sql: include_str!("../migrations/V4__operators.sql") },
    Migration {
        version: 5,
        file: "V5__decisioning_tasks.sql",
        sql: include_str!("../migrations/V5__decisioning_tasks.sql"),
    },
];

/// The schema version that this build works with.
pub const LATEST: i32 = 5;

/// Brings the database to [`LATEST`] and returns the versions that were applied, none when it
/// already stood there. Safe to call on every start, from any number of processes at once.
///
/// # Errors
/// [`MigrationError::Newer`] when a later build has migrated further: upgrade this one.
/// [`MigrationError::Busy`] when a table stayed locked: run it again at a quieter moment.
/// [`MigrationError::Database`] for anything else; the database is at the last whole version.
pub async fn apply(client: &mut Client) -> Result<Vec<i32>, MigrationError> {
    let mut applied = Vec::new();
    let mut refusals = 0;
    loop {
        let transaction = client.transaction().await?;
        if !transaction.query_one(TRY_LOCK, &[&LOCK]).await?.get::<_, bool>(0) {
            transaction.rollback().await?;
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let version = version(&transaction).await?;
        if version > LATEST {
            return Err(MigrationError::Newer { version });
        }
        let Some(next) = MIGRATIONS.iter().find(|migration| migration.version == version + 1) else {
            return Ok(applied);
        };
        match run(transaction, next).await {
            Ok(()) => applied.push(next.version),
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                refusals += 1;
                if refusals == MAX_REFUSALS {
                    return Err(MigrationError::Busy { file: next.file, source: error });
                }
                tokio::time::sleep(PAUSE * 10).await;
            }
            Err(source) => return Err(MigrationError::File { file: next.file, source }),
        }
    }
}

/// The version that the database stands at; 0 where there is no schema `taskbell`.
///
/// # Errors
/// [`tokio_postgres::Error`] when it cannot be read.
pub async fn current(client: &mut Client) -> Result<i32, tokio_postgres::Error> {
    version(&client.transaction().await?).await
}

/// Every file in one text, as `psql` takes it: each in a transaction of its own.
#[must_use]
pub fn print() -> String {
    MIGRATIONS
        .iter()
        .map(|migration| format!("-- {}\nBEGIN;\n{}\nCOMMIT;\n\n", migration.file, migration.sql.trim_end()))
        .collect()
}

async fn run(transaction: Transaction<'_>, migration: &Migration) -> Result<(), tokio_postgres::Error> {
    transaction.batch_execute(LIMITS).await?;
    transaction.batch_execute(migration.sql).await?;
    transaction.commit().await
}

async fn version(transaction: &Transaction<'_>) -> Result<i32, tokio_postgres::Error> {
    if transaction.query_one(HAS_VERSIONS, &[]).await?.get::<_, bool>(0) {
        Ok(transaction.query_one(VERSION, &[]).await?.get(0))
    } else {
        Ok(0)
    }
}

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// A later build was here.
    #[error(
        "the schema taskbell is at version {version}, this build knows {LATEST}: use a build that knows it"
    )]
    Newer {
        /// The version found.
        version: i32,
    },
    /// A table that the file needs stayed locked.
    #[error("{file}: a lock was not granted within {MAX_REFUSALS} tries; end long transactions or try later")]
    Busy {
        /// The file that waited.
        file: &'static str,
        /// The last refusal.
        source: tokio_postgres::Error,
    },
    /// A file failed; nothing of it was kept.
    #[error("{file} failed, nothing of it was kept")]
    File {
        /// The file.
        file: &'static str,
        /// What the database said.
        source: tokio_postgres::Error,
    },
    /// The database could not be asked.
    #[error("the schema version could not be read")]
    Database(#[from] tokio_postgres::Error),
}

/// `taskmigr` in ASCII; the doorbell's key is `taskbell`.
const LOCK: i64 = 8_386_110_886_374_893_426;
const TRY_LOCK: &str = "SELECT pg_try_advisory_xact_lock($1)";
const HAS_VERSIONS: &str = "SELECT to_regclass('taskbell.schema_version') IS NOT NULL";
const VERSION: &str = "SELECT coalesce(max(version), 0) FROM taskbell.schema_version";
/// A lock that is waited for stops everybody behind us, so we wait briefly and come back.
const LIMITS: &str = "SET LOCAL lock_timeout = '200ms'; SET LOCAL statement_timeout = '10min'";
/// A minute and a half: an autovacuum may be in the way that long.
const MAX_REFUSALS: u32 = 75;
/// Between two looks at a lock that another migrator holds.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_numbered_without_a_gap_and_record_themselves() {
        for (migration, expected) in MIGRATIONS.iter().zip(1..) {
            assert_eq!(migration.version, expected);
            assert!(migration.file.starts_with(&format!("V{expected}__")));
            assert!(migration.sql.contains(&format!("schema_version (version, name) VALUES ({expected}, ")));
        }
        assert_eq!(MIGRATIONS.last().map(|migration| migration.version), Some(LATEST));
    }
}
