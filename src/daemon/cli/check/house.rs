//! The house: partitions for the days ahead, and a hot table that stays small.

use tokio_postgres::{Error, Transaction};

use super::finding::Findings;

pub(super) async fn partitions(transaction: &Transaction<'_>, found: &mut Findings) -> Result<(), Error> {
    let mut all_well = true;
    for row in transaction.query(PARTITIONS, &[]).await? {
        let (parent, missing, astray): (&str, Option<&str>, bool) = (row.get(0), row.get(1), row.get(2));
        all_well &= missing.is_none() && !astray;
        if let Some(days) = missing {
            found.warn(
                "partitions",
                format!("taskbell.{parent} has none for {days}"),
                "a running daemon makes them: is one running? SELECT taskbell.create_partitions()",
            );
        }
        if astray {
            let what = match parent {
                "transition" => "what `why` and `tasks show` know of those tasks",
                _ => "those attempts, for `why` and webhook_activity",
            };
            found.warn(
                "partitions",
                format!(
                    "rows of taskbell.{parent} stand in its default partition, where none is dropped by age"
                ),
                format!(
                    "they keep that day's partition from being made: SELECT taskbell.move_to_days(), as the \
                     schema's owner, moves them (TRUNCATE taskbell.{parent}_default would lose {what})"
                ),
            );
        }
    }
    if all_well {
        found.ok("partitions", "made ahead");
    }
    Ok(())
}

pub(super) async fn outbox(transaction: &Transaction<'_>, found: &mut Findings) -> Result<(), Error> {
    let row = transaction.query_one(OUTBOX, &[]).await?;
    let table = HotTable {
        live: row.get(0),
        dead: row.get(1),
        bytes: row.get(2),
        vacuumed: row.get(3),
        autovacuum: row.get(4),
    };
    table.judge(found);
    Ok(())
}

struct HotTable {
    live: i64,
    dead: i64,
    bytes: i64,
    /// Seconds since.
    vacuumed: Option<f64>,
    autovacuum: bool,
}

impl HotTable {
    fn judge(&self, found: &mut Findings) {
        let Self { live, dead, bytes, .. } = *self;
        let size = format!("{live} rows and {dead} dead ones in {} MiB", bytes >> 20);
        let recently = self.vacuumed.is_some_and(|seconds| seconds < VACUUM_PAUSE);
        if !self.autovacuum {
            found.warn(
                "outbox table",
                format!("{size}: autovacuum does not come"),
                "ALTER TABLE taskbell.outbox RESET (autovacuum_enabled), and autovacuum and track_counts on",
            );
        } else if dead > DEAD_ROWS + live && !recently {
            found.warn(
                "outbox table",
                format!("{size}: not vacuumed in time"),
                "end what holds old rows (transactions and slots, in the lines above), then VACUUM taskbell.outbox",
            );
        } else if bytes > LARGE && bytes / live.max(1) > BYTES_PER_ROW {
            found.warn(
                "outbox table",
                format!("{size}: nearly empty, claims read past what is gone"),
                "REINDEX TABLE CONCURRENTLY taskbell.outbox; VACUUM FULL taskbell.outbox at a quiet moment",
            );
        } else {
            found.ok("outbox table", size);
        }
    }
}

const PARTITIONS: &str = include_str!("partitions.sql");
const OUTBOX: &str = include_str!("outbox_table.sql");
/// Vacuum begins at 2,000 (migrations/V1__journal.sql); a busy minute leaves more.
const DEAD_ROWS: i64 = 20_000;
/// Autovacuum looks every minute; a few of them may be missed.
const VACUUM_PAUSE: f64 = 300.0;
/// What a backlog leaves behind; below, an empty table costs nobody anything.
const LARGE: i64 = 256 << 20;
/// Many times that of a row with its index entries and a result of usual size.
const BYTES_PER_ROW: i64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{Ok, Warn};
    use super::*;

    #[test]
    fn a_table_that_is_vacuumed_and_full_of_rows_is_well_and_others_are_not() {
        let well = || HotTable { live: 10, dead: 500, bytes: 1 << 20, vacuumed: None, autovacuum: true };
        for (table, expected) in [
            (well(), Ok),
            (HotTable { autovacuum: false, ..well() }, Warn),
            (HotTable { dead: 25_000, ..well() }, Warn),
            (HotTable { dead: 25_000, vacuumed: Some(3600.0), ..well() }, Warn),
            (HotTable { dead: 25_000, vacuumed: Some(30.0), ..well() }, Ok),
            (HotTable { dead: 25_000, live: 1_000_000, bytes: 2 << 30, ..well() }, Ok),
            (HotTable { bytes: 2 << 30, ..well() }, Warn),
        ] {
            let mut found = Findings::default();
            table.judge(&mut found);
            assert_eq!(found.worst(), expected, "{found:?}");
        }
    }
}
