//! What is sealed in the database, and whether the configured keys open it.

use tokio_postgres::{Error, Transaction};

use super::finding::Findings;
use crate::daemon::config::SealedSource;
use crate::daemon::keys::read_sdk_keys;
use crate::daemon::sources::COLUMNS;
use crate::task::{SdkRow, SealingKeys};

/// Our own registrations, by the key that sealed them.
pub(super) async fn registrations(
    transaction: &Transaction<'_>,
    keys: &SealingKeys,
    found: &mut Findings,
) -> Result<(), Error> {
    for row in transaction.query(SEALED_WITH, &[]).await? {
        let (key, count): (Option<&str>, i64) = (row.get(0), row.get(1));
        match key {
            None if keys.current().is_some() => found.warn(
                "sealed secrets",
                format!("{count} registrations hold plain secrets"),
                "a running daemon seals them within seconds: is one running, with this key?",
            ),
            None => found.ok("sealed secrets", format!("{count} registrations hold plain secrets")),
            Some(key) if !keys.has(key) => found.fail(
                "sealed secrets",
                format!(
                    "no configured key opens {count} registrations that {key} sealed: their webhooks wait"
                ),
                "add that key's file to sealing.key_files",
            ),
            Some(key) if keys.current() == Some(key) => {
                found.ok("sealed secrets", format!("{count} registrations under {key}"));
            }
            Some(key) => found.warn(
                "sealed secrets",
                format!("{count} registrations under the old key {key}"),
                "`taskbell keys reseal` before that key goes",
            ),
        }
    }
    Ok(())
}

/// The SDK's outbox carries no key ids: some of what it owes is opened.
pub(super) async fn sdk_outbox(
    transaction: &Transaction<'_>,
    source: &SealedSource,
    found: &mut Findings,
) -> Result<(), Error> {
    let keys = match read_sdk_keys(&source.key_files) {
        Ok(keys) => keys,
        Err(error) => {
            found.broken("SDK outbox", format!("{error:#}"));
            return Ok(());
        }
    };
    let Some(row) = transaction.query_opt(COLUMNS, &[&source.table]).await? else {
        let says = format!("sources.sealed.table: there is no table {}", source.table);
        found.fail("SDK outbox", says, "the SDK's create_schema makes it");
        return Ok(());
    };
    if let Some(missing) = row.get::<_, Option<&str>>(0) {
        let says = format!("{} has no column {missing}", source.table);
        found.fail("SDK outbox", says, "run the SDK's create_schema of 9.2.0 or later");
        return Ok(());
    }
    let sql = SDK_ROWS.replace("adcp_task_webhook_outbox", &source.table);
    let rows = transaction.query(&sql, &[&SAMPLE]).await?;
    let closed = rows.iter().filter(|row| {
        let columns = SdkRow {
            task_id: row.get(0),
            account_id: row.get(1),
            task_type: row.get(2),
            terminal_status: row.get(3),
            url: row.get(4),
            operation_id: row.get(5),
            idempotency_key: row.get(6),
            signing_scope_id: row.get(7),
        };
        keys.open_delivery(&columns, row.get(8), row.get(9)).is_err()
    });
    match (closed.count(), rows.len()) {
        (0, looked) => found.ok("SDK outbox", format!("the keys open the last {looked} rows owed")),
        (closed, looked) => found.fail(
            "SDK outbox",
            format!(
                "no configured key opens {closed} of the last {looked} rows owed: they become dead letters"
            ),
            "name the SDK's key in sources.sealed.key_files, also the one before a rotation",
        ),
    }
    Ok(())
}

const SEALED_WITH: &str = include_str!("sealed_with.sql");
const SDK_ROWS: &str = include_str!("sdk_rows.sql");
const SAMPLE: i64 = 100;
