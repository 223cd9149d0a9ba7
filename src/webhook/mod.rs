//! From a settled task to an answered POST: render, guard, sign, send.
//!
//! A delivery is [`Prepared`] once per attempt, from stored values only, so every attempt has
//! the same key and the same bytes. Nothing here knows Postgres, and what the answer means for
//! the row is the worker's to judge: this module says what happened, as an [`Outcome`].

mod envelope;
mod target;
pub mod guard;
mod key;
pub mod sign;
mod send;
mod outcome;
pub mod verify;

use bytes::Bytes;

use crate::task::{Authentication, CallbackUrl};

pub use envelope::{Envelope, MAX_BODY_BYTES};
pub use key::{Algorithm, KeyError, KeyRing, SigningKey};
pub use outcome::{FailureReason, Outcome, Unsendable};
pub use send::{LegacySchemes, Sender, SenderError, SenderSettings};
pub use target::{Target, TargetError};

/// The delivery key, the same on every attempt: `^[A-Za-z0-9_.:-]{16,255}$`
/// (AdCP `mcp-webhook-payload.json`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Parses a key; `None` when it does not have the form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.:-".contains(&b);
        ((16..=255).contains(&text.len()) && text.bytes().all(legal)).then(|| Self(text.to_owned()))
    }

    /// The key of one of our own rows.
    #[must_use]
    pub fn of_row(key: uuid::Uuid) -> Self {
        Self(format!("whk_{key}"))
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is sent, the same on every attempt.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Where to.
    pub url: CallbackUrl,
    /// The key inside the body.
    pub key: IdempotencyKey,
    /// The body, byte for byte.
    pub body: Bytes,
    /// Legacy authentication, if the buyer chose it; otherwise the request is signed.
    pub authentication: Option<Authentication>,
}
