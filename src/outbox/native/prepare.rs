//! A claimed row becomes a webhook: its registration is opened and held to the contract, its
//! body rendered.
//!
//! The registration is parsed once more as if it had just come: another writer may have put it
//! there without `register_webhook`. Column numbers are those of `shown.sql`.

use std::sync::Arc;

use secrecy::SecretString;
use serde_json::value::RawValue;
use tokio_postgres::Row;

use crate::task::{
    Authentication, Binding, CallbackUrl, OpenError, OperationId, Registration, RegistrationError, Sealed,
    SealingKeys, Secrets, SigningScope, Status, TaskId, TaskType, UrlSchemes,
};
use crate::webhook::{Envelope, IdempotencyKey, Outcome, OwnFault, Prepared, Unsendable};

/// Makes webhooks of rows.
pub(super) struct Preparer {
    pub(super) schemes: UrlSchemes,
    pub(super) sealing: Arc<SealingKeys>,
}

impl Preparer {
    /// The webhook, or what its attempt comes to without sending anything.
    pub(super) fn prepare(&self, row: &Row) -> Result<Prepared, Outcome> {
        if row.get(27) {
            return Err(Outcome::Superseded);
        }
        let registration = self.registration(row)?;
        let key = IdempotencyKey::of_row(row.get(9));
        let body = render(row, &registration, &key).map_err(Outcome::Unsendable)?;
        let Registration { url, authentication, signing_scope, .. } = registration;
        Ok(Prepared { url, key, body, authentication, signing_scope })
    }

    fn registration(&self, row: &Row) -> Result<Registration, Outcome> {
        let text = |column: usize| row.get::<_, Option<String>>(column);
        let (Some(url), Some(operation_id)) = (text(16), text(17)) else {
            return Err(refuse("push_notification_config", "is no longer stored").into());
        };
        let scheme = text(19);
        let binding = Binding {
            account: row.get(22),
            task_id: row.get(2),
            task_type: row.get(3),
            url: &url,
            operation_id: &operation_id,
            scheme: scheme.as_deref(),
        };
        let secrets = match sealed(row) {
            None => Secrets { token: text(18).map(Into::into), credentials: text(20).map(Into::into) },
            Some(sealed) => self.sealing.open(&sealed, &binding).map_err(|error| match error {
                OpenError::NoKey => Outcome::OwnFault(OwnFault::NoSealingKey),
                OpenError::Refused => Outcome::Unsendable(Unsendable::Sealed),
            })?,
        };
        Ok(Registration {
            url: CallbackUrl::parse(&url, self.schemes)?,
            operation_id: OperationId::parse(&operation_id)?,
            token: secrets.token,
            authentication: authentication(scheme.as_deref(), secrets.credentials)?,
            signing_scope: text(26).map(|scope| SigningScope::parse(&scope)).transpose()?,
            states: Vec::new(),
        })
    }
}

/// A stored registration that could not have been accepted can never be sent to.
impl From<RegistrationError> for Outcome {
    fn from(error: RegistrationError) -> Self {
        Self::Unsendable(Unsendable::Registration(error))
    }
}

fn sealed(row: &Row) -> Option<Sealed> {
    let ciphertext: Vec<u8> = row.get::<_, Option<_>>(23)?;
    let nonce = row.get::<_, Option<&[u8]>>(24)?.try_into().ok()?;
    Some(Sealed { key_id: row.get::<_, Option<_>>(25)?, nonce, ciphertext })
}

fn authentication(
    scheme: Option<&str>,
    credentials: Option<SecretString>,
) -> Result<Option<Authentication>, RegistrationError> {
    match (scheme, credentials) {
        (None, None) => Ok(None),
        (Some("Bearer"), Some(secret)) => Ok(Some(Authentication::Bearer(secret))),
        (Some("HMAC-SHA256"), Some(secret)) => Ok(Some(Authentication::HmacSha256(secret))),
        _ => Err(refuse("authentication", "has an unknown scheme, or only half of what it needs")),
    }
}

fn render(row: &Row, registration: &Registration, key: &IdempotencyKey) -> Result<bytes::Bytes, Unsendable> {
    let document = raw("result", row.get(14))?;
    let context = raw("context", row.get(15))?;
    let unknown = |_| Unsendable::Document { member: "status", problem: "is none of AdCP's" };
    let accepted: bool = row.get(21);
    Envelope {
        idempotency_key: key,
        operation_id: &registration.operation_id,
        task_id: &TaskId::parse(row.get::<_, &str>(2)).map_err(|_| Unsendable::TaskId)?,
        task_type: &TaskType::parse(row.get::<_, &str>(3)).map_err(|_| Unsendable::TaskType)?,
        status: row.get::<_, &str>(5).parse::<Status>().map_err(unknown)?,
        timestamp: row.get(6),
        token: registration.token.as_ref(),
        result: document,
        context,
    }
    .render_for(|_| accepted)
}

fn raw<'a>(member: &'static str, text: Option<&'a str>) -> Result<Option<&'a RawValue>, Unsendable> {
    let unreadable = |_| Unsendable::Document { member, problem: "is not JSON" };
    text.map(serde_json::from_str).transpose().map_err(unreadable)
}

fn refuse(field: &'static str, problem: &'static str) -> RegistrationError {
    RegistrationError { field, problem }
}
