//! Seals what writers without a key left plain, and moves rows from an old key to the current one.

use deadpool_postgres::Pool;
use tokio_postgres::Row;

use super::super::{Loan, OutboxError};
use crate::task::{Binding, OpenError, Sealed, SealingKeys, Secrets};

/// Which registrations are sealed anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those whose secrets are plain.
    Plain,
    /// Also those that another key sealed.
    PlainAndOldKeys,
}

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resealed {
    /// Rows that are sealed with the current key now.
    pub rows: u64,
    /// Rows that none of the configured keys opens; left as they are.
    pub unopenable: u64,
}

/// Seals under the current key, in short transactions, until nothing is left. Without a key
/// nothing is done.
///
/// # Errors
/// [`OutboxError`]; what was sealed before it stays so.
pub async fn seal_registrations(
    pool: &Pool,
    keys: &SealingKeys,
    which: Which,
) -> Result<Resealed, OutboxError> {
    let mut done = Resealed::default();
    let Some(current) = keys.current() else { return Ok(done) };
    let mut client = Loan::of(pool).await?;
    loop {
        let transaction = client.transaction().await?;
        // Rows that cannot be opened come again with every look: look past them.
        let limit = ROWS + i64::try_from(done.unopenable).unwrap_or(i64::MAX - ROWS);
        let rows = match which {
            Which::Plain => {
                let statement = transaction.prepare_cached(PLAIN).await?;
                transaction.query(&statement, &[&limit]).await?
            }
            Which::PlainAndOldKeys => {
                let statement = transaction.prepare_cached(OLD_KEYS).await?;
                transaction.query(&statement, &[&limit, &current]).await?
            }
        };
        let (mut watch_ids, mut task_ids) = (Vec::new(), Vec::new());
        let (mut ciphertexts, mut nonces) = (Vec::new(), Vec::new());
        let mut unopenable = 0;
        for row in &rows {
            match seal(row, keys) {
                Some(sealed) => {
                    watch_ids.push(row.get::<_, i16>(0));
                    task_ids.push(row.get::<_, String>(1));
                    ciphertexts.push(sealed.ciphertext);
                    nonces.push(sealed.nonce.to_vec());
                }
                None => unopenable += 1,
            }
        }
        done.unopenable = unopenable;
        if task_ids.is_empty() {
            transaction.commit().await?;
            client.give_back();
            return Ok(done);
        }
        let statement = transaction.prepare_cached(SEAL).await?;
        done.rows += transaction
            .execute(&statement, &[&watch_ids, &task_ids, &ciphertexts, &nonces, &current])
            .await?;
        transaction.commit().await?;
    }
}

/// The row's secrets under the current key; `None` when no key opens them.
fn seal(row: &Row, keys: &SealingKeys) -> Option<Sealed> {
    let binding = Binding {
        account: row.get(2),
        task_id: row.get(1),
        task_type: row.get(3),
        url: row.get(4),
        operation_id: row.get(5),
        scheme: row.get(6),
    };
    let secrets = match row.get::<_, Option<Vec<u8>>>(9) {
        None => Secrets {
            token: row.get::<_, Option<String>>(7).map(Into::into),
            credentials: row.get::<_, Option<String>>(8).map(Into::into),
        },
        Some(ciphertext) => {
            let nonce = row.get::<_, Option<&[u8]>>(10)?.try_into().ok()?;
            let sealed = Sealed { key_id: row.get::<_, Option<_>>(11)?, nonce, ciphertext };
            match keys.open(&sealed, &binding) {
                Ok(secrets) => secrets,
                Err(OpenError::NoKey | OpenError::Refused) => return None,
            }
        }
    };
    keys.seal(&secrets, &binding).ok()
}

const PLAIN: &str = include_str!("plain.sql");
const OLD_KEYS: &str = include_str!("old_keys.sql");
const SEAL: &str = include_str!("seal.sql");
/// A short transaction, so that a seller who registers never waits long for a row.
const ROWS: i64 = 200;
