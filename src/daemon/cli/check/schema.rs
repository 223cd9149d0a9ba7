//! The schema's version, and the triggers that record what is owed.

use tokio_postgres::{Error, Transaction};

use super::super::WATCHED;
use super::finding::Findings;
use crate::migrations;

/// Whether there is a schema of ours to look further into.
pub(super) fn version(version: i32, found: &mut Findings) -> bool {
    let latest = migrations::LATEST;
    let says = format!("version {version}, this build needs {latest}");
    if version == latest {
        found.ok("schema", format!("version {version}"));
    } else if version < latest {
        found.fail("schema", says, "run `taskbell migrate`");
    } else {
        found.fail("schema", says, "use a newer build");
    }
    version > 0
}

pub(super) async fn triggers(transaction: &Transaction<'_>, found: &mut Findings) -> Result<(), Error> {
    let tables = transaction.query(WATCHED, &[]).await?;
    if tables.is_empty() {
        found.fail("triggers", "no table is watched", "`taskbell watch add YOUR_TASKS`");
    }
    for table in tables {
        let (exists, name, profile): (bool, &str, &str) = (table.get(0), table.get(1), table.get(2));
        let (expected, enabled): (i32, i32) = (table.get(4), table.get(5));
        let again = format!("`taskbell watch add {name} --profile {profile}`");
        if !exists {
            found.warn(
                "triggers",
                format!("a watched table is gone (its number was {name})"),
                format!("DELETE FROM taskbell.watched_table WHERE relation = {name}"),
            );
        } else if enabled != expected {
            let says =
                format!("{name} has {enabled} of {expected} triggers: what changes there is not recorded");
            found.fail("triggers", says, again);
        } else if table.get::<_, Option<bool>>(6) == Some(false) {
            let says = format!("{name} is watched, but the index over its open tasks was not finished");
            found.warn("triggers", says, again);
        } else {
            found.ok("triggers", format!("{name} is watched"));
        }
    }
    Ok(())
}
