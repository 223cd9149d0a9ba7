//! From a settled task to an answered POST: render, guard, sign, send.
//!
//! Reading order is the order of one attempt. [`Envelope`] renders a body once, when a row is
//! prepared; every attempt then takes the same [`Prepared`] through [`Sender::send`], which
//! parses the URL into what will be signed and sent, checks the address, signs, posts and says
//! what happened as an [`Outcome`]. What to do about it is the worker's business.
//!
//! Nothing here knows Postgres, and rendering reads no clock: times are arguments.
//! [`verify`] is the receiver's half, for the sample buyer and for the tests.

mod reason;
mod envelope;
mod json;
mod guard;
mod key;
mod sign;
mod trace;
mod connections;
mod send;
pub mod verify;

pub use envelope::{Envelope, MAX_BODY_BYTES};
pub use guard::{AddressRefused, GuardPolicy, Resolver};
pub use key::{KeyError, KeyRing, KeySets, RotationError, SigningAlgorithm, SigningKey};
pub use reason::{FailureReason, SignatureError, UnknownReason};
pub use send::{Sender, SenderError, SenderOptions};
pub use sign::{LegacyModes, Nonce, Signer};
pub use trace::TraceContext;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::task::{Authentication, CallbackUrl, SigningScope};

/// One webhook, ready to send; the same on every attempt.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Where it goes, as the buyer wrote it.
    pub url: CallbackUrl,
    /// The delivery key inside the body.
    pub key: IdempotencyKey,
    /// The bytes that are digested, signed and posted.
    pub body: Bytes,
    /// Legacy authentication; `None` means an RFC 9421 signature.
    pub authentication: Option<Authentication>,
    /// Whose key signs; `None` means the default key set.
    pub signing_scope: Option<SigningScope>,
}

/// The key under which a receiver recognises one delivery: `^[A-Za-z0-9_.:-]{16,255}$`
/// (AdCP `mcp-webhook-payload.json`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Parses a key.
    ///
    /// # Errors
    /// [`Unsendable::IdempotencyKey`] when it does not match the pattern.
    pub fn parse(text: impl Into<String>) -> Result<Self, Unsendable> {
        let text = text.into();
        if (16..=255).contains(&text.len()) && text.bytes().all(is_identifier_byte) {
            Ok(Self(text))
        } else {
            Err(Unsendable::IdempotencyKey)
        }
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

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether AdCP's identifier patterns (`[A-Za-z0-9_.:-]`) have this byte.
fn is_identifier_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte)
}

/// Why a row can never be sent, whatever its receiver does.
///
/// Names the member at fault and never repeats its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsendable {
    /// The registration as stored is not one that could have been accepted.
    #[error("the stored registration is unusable: {0}")]
    Registration(#[from] crate::task::RegistrationError),
    /// Sealed secrets that were altered, or belong to another row.
    #[error("the sealed registration does not open: it was altered, or belongs to another task")]
    Sealed,
    /// The delivery key does not match AdCP's pattern.
    #[error("idempotency_key must be 16 to 255 characters of A-Z a-z 0-9 _ . : -")]
    IdempotencyKey,
    /// The task id cannot become a legal `notification_id`.
    #[error("task_id must be 1 to 246 characters of A-Z a-z 0-9 _ . : -")]
    TaskId,
    /// Receivers refuse a task type outside the closed enum.
    #[error("task_type is none of the AdCP enum's")]
    TaskType,
    /// The registered token is out of bounds.
    #[error("token must have 16 to 4096 characters")]
    Token,
    /// Bearer credentials with a control character.
    #[error("authentication.credentials have a character that no header can carry")]
    Credentials,
    /// A moment that RFC 3339 cannot express.
    #[error("timestamp is outside the years 0001 to 9999")]
    Timestamp,
    /// A stored JSON document cannot go into the envelope.
    #[error("{member} {problem}")]
    Document {
        /// The envelope's member.
        member: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Two members of one object have the same name. Receivers read such bodies differently, so
    /// none is ever emitted (AdCP security, duplicate object keys).
    #[error("duplicate_key_input: {member} has an object with the same key twice")]
    DuplicateKey {
        /// The envelope's member.
        member: &'static str,
    },
    /// Over [`MAX_BODY_BYTES`].
    #[error("the body would have {bytes} bytes, the limit is {MAX_BODY_BYTES}")]
    TooLarge {
        /// What it would have had.
        bytes: usize,
    },
}

impl Unsendable {
    /// The closed classification that is stored and counted.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Registration(_) | Self::Token | Self::Credentials => FailureReason::RegistrationMalformed,
            Self::Sealed => FailureReason::Unopenable,
            Self::TaskType => FailureReason::UnknownTaskType,
            Self::DuplicateKey { .. } => FailureReason::DuplicateKeys,
            Self::TooLarge { .. } => FailureReason::BodyTooLarge,
            Self::IdempotencyKey | Self::TaskId | Self::Timestamp | Self::Document { .. } => {
                FailureReason::Unrenderable
            }
        }
    }
}

/// What happened on the wire, without judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver answered. Its status is the whole answer: a body that breaks off later
    /// changes nothing, because the receiver has taken or refused the webhook by then.
    Answered {
        /// The HTTP status.
        status: u16,
        /// `Retry-After`, from now; not clamped to anything.
        retry_after: Option<Duration>,
        /// What a `WWW-Authenticate: Signature error="webhook_…"` names.
        signature_error: Option<SignatureError>,
    },
    /// The URL itself may not be called: a refused address literal, host name, port or scheme.
    AddressRefused,
    /// The host's DNS answer had a refused address; another answer may not.
    AnswerRefused,
    /// No answer came: one of [`FailureReason::Dns`], [`FailureReason::Connect`],
    /// [`FailureReason::Tls`], [`FailureReason::Timeout`], [`FailureReason::Reset`] or
    /// [`FailureReason::ResponseBroken`].
    Failed(FailureReason),
    /// The row can never be sent.
    Unsendable(Unsendable),
    /// Nothing was sent: a later state of the task was delivered, or goes out now.
    Superseded,
    /// Nothing was sent, and neither the row nor the receiver is to blame.
    OwnFault(OwnFault),
}

impl Outcome {
    /// The status, when there was an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Answered { status, .. } => Some(*status),
            Self::AddressRefused
            | Self::AnswerRefused
            | Self::Failed(_)
            | Self::Unsendable(_)
            | Self::Superseded
            | Self::OwnFault(_) => None,
        }
    }

    /// Why this is no delivery; `None` for a 2xx, and for what need not be delivered any more.
    #[must_use]
    pub fn reason(&self) -> Option<FailureReason> {
        match self {
            Self::Answered { signature_error: Some(_), status: 401, .. } => {
                Some(FailureReason::SignatureRefused)
            }
            Self::Answered { status, .. } => FailureReason::of_status(*status),
            Self::AddressRefused => Some(FailureReason::AddressRefused),
            Self::AnswerRefused => Some(FailureReason::AnswerRefused),
            Self::Failed(reason) => Some(*reason),
            Self::Unsendable(why) => Some(why.reason()),
            Self::Superseded => None,
            Self::OwnFault(fault) => Some(fault.reason()),
        }
    }
}

impl From<OwnFault> for Outcome {
    fn from(fault: OwnFault) -> Self {
        Self::OwnFault(fault)
    }
}

/// Why this side could not even try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OwnFault {
    /// The registration wants an RFC 9421 signature and no key is configured.
    #[error("no signing key is configured")]
    NoSigningKey,
    /// The registration wants a legacy mode that the configuration has switched off.
    #[error("the registration asks for {0}, which is switched off")]
    LegacyModeOff(&'static str),
    /// The registration names a signing scope that has no key set here.
    #[error("no key set is configured for the registration's signing scope")]
    UnknownSigningScope,
    /// The registration was sealed with a key that is not configured here.
    #[error("the key that sealed the registration is not configured")]
    NoSealingKey,
    /// The random source or the signing library failed.
    #[error("signing failed")]
    Signing,
}

impl OwnFault {
    /// The closed classification that is stored and counted.
    #[must_use]
    pub fn reason(self) -> FailureReason {
        match self {
            Self::NoSigningKey => FailureReason::NoSigningKey,
            Self::LegacyModeOff(_) => FailureReason::LegacyModeOff,
            Self::UnknownSigningScope => FailureReason::UnknownSigningScope,
            Self::NoSealingKey => FailureReason::NoSealingKey,
            Self::Signing => FailureReason::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_keys_keep_to_the_pattern() {
        for text in ["whk_00000000-0000-4000-8000-000000000001", &"a".repeat(16), &"Z".repeat(255)] {
            assert_eq!(IdempotencyKey::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "short", &"a".repeat(256), "whk_0000 0000 0000 0000", "whk_ключ_0000000000"] {
            assert_eq!(IdempotencyKey::parse(text), Err(Unsendable::IdempotencyKey), "{text:?}");
        }
    }

    #[test]
    fn an_outcome_without_a_2xx_has_a_reason() {
        let answered = |status| Outcome::Answered { status, retry_after: None, signature_error: None };
        for (status, reason) in [
            (200, None),
            (204, None),
            (302, Some(FailureReason::Redirected)),
            (401, Some(FailureReason::Unauthorized)),
            (422, Some(FailureReason::Rejected)),
            (409, Some(FailureReason::KeyConflict)),
            (410, Some(FailureReason::Gone)),
            (429, Some(FailureReason::Throttled)),
            (503, Some(FailureReason::ServerError)),
            (600, Some(FailureReason::ResponseBroken)),
        ] {
            assert_eq!(answered(status).reason(), reason, "{status}");
        }
        let refused = Outcome::Answered {
            status: 401,
            retry_after: None,
            signature_error: Some(SignatureError::KeyUnknown),
        };
        assert_eq!(refused.reason(), Some(FailureReason::SignatureRefused));
        assert_eq!(Outcome::OwnFault(OwnFault::NoSigningKey).reason(), Some(FailureReason::NoSigningKey));
    }
}
