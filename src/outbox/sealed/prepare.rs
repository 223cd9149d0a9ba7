//! A claimed row is opened and held to its columns. Column numbers are those of `claim.sql`.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use tokio_postgres::Row;

use crate::task::{CallbackUrl, SdkKeys, SdkRow, SigningScope, UrlSchemes};
use crate::webhook::{IdempotencyKey, MAX_BODY_BYTES, Outcome, Prepared, Unsendable};

/// Opens rows.
pub(super) struct Preparer {
    pub(super) schemes: UrlSchemes,
    pub(super) keys: Arc<SdkKeys>,
}

/// The members of a body that must equal the row's columns.
#[derive(Deserialize)]
struct Members {
    task_id: String,
    task_type: String,
    status: String,
    operation_id: String,
    idempotency_key: String,
}

impl Preparer {
    /// The webhook as the SDK made it, or why its row can never be sent.
    pub(super) fn prepare(&self, row: &Row) -> Result<Prepared, Outcome> {
        let scope = row.get::<_, Option<&str>>(8);
        let columns = SdkRow {
            task_id: row.get(1),
            account_id: row.get(2),
            task_type: row.get(3),
            terminal_status: row.get(4),
            url: row.get(5),
            operation_id: row.get(6),
            idempotency_key: row.get(7),
            signing_scope_id: scope,
        };
        self.open(&columns, row.get(9), row.get(10)).map_err(Outcome::Unsendable)
    }

    fn open(&self, columns: &SdkRow<'_>, ciphertext: &[u8], nonce: &[u8]) -> Result<Prepared, Unsendable> {
        let delivery = self.keys.open_delivery(columns, ciphertext, nonce).map_err(|_| Unsendable::Sealed)?;
        if !belongs_to(&delivery.body, columns) {
            return Err(Unsendable::Sealed);
        }
        if delivery.body.len() > MAX_BODY_BYTES {
            return Err(Unsendable::TooLarge { bytes: delivery.body.len() });
        }
        Ok(Prepared {
            url: CallbackUrl::parse(columns.url, self.schemes)?,
            key: IdempotencyKey::parse(columns.idempotency_key)?,
            body: Bytes::from(delivery.body),
            authentication: delivery.authentication,
            signing_scope: columns.signing_scope_id.map(SigningScope::parse).transpose()?,
        })
    }
}

fn belongs_to(body: &[u8], columns: &SdkRow<'_>) -> bool {
    let is_object = body.trim_ascii_start().starts_with(b"{");
    serde_json::from_slice::<Members>(body).is_ok_and(|members| {
        is_object
            && members.task_id == columns.task_id
            && members.task_type == columns.task_type
            && members.status == columns.terminal_status
            && members.operation_id == columns.operation_id
            && members.idempotency_key == columns.idempotency_key
    })
}
