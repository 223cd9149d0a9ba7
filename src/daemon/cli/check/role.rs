//! The daemon's role: each grant that is missing, as the statement that gives it.

use tokio_postgres::{Error, Transaction};

use super::finding::Findings;
use crate::daemon::config::Config;

pub(super) async fn role(
    transaction: &Transaction<'_>,
    config: &Config,
    found: &mut Findings,
) -> Result<(), Error> {
    let sealed = config.sealed.as_ref().map(|source| source.table.as_str());
    let fails_tasks = !config.fail_after.is_empty();
    let mut rows = transaction.query(ROLE, &[&sealed, &fails_tasks]).await?;
    // Which tables are watched can be read only with the grants that come first.
    if rows.is_empty() {
        if !transaction.query_one(HAS_SCHEMA, &[]).await?.get::<_, bool>(0) {
            return Ok(());
        }
        rows = transaction.query(ROLE_TABLES, &[]).await?;
    }
    if rows.is_empty() {
        found.ok("grants", "the role may do what the daemon does");
    }
    let me: String = transaction.query_one("SELECT quote_ident(current_user)", &[]).await?.get(0);
    for row in rows {
        let (privileges, object): (&str, &str) = (row.get(0), row.get(1));
        found.fail(
            "grants",
            format!("{me} may not {privileges} on {object}"),
            format!("GRANT {privileges} ON {object} TO {me}"),
        );
    }
    Ok(())
}

const HAS_SCHEMA: &str = "SELECT to_regclass('taskbell.watched_table') IS NOT NULL";
const ROLE: &str = include_str!("role.sql");
const ROLE_TABLES: &str = include_str!("role_tables.sql");
