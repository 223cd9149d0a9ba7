//! What can happen to an attempt, in closed words: they are stored, counted and shown.
//!
//! A receiver's own words are never kept: they may echo what we sent, secrets included.

use std::time::Duration;

/// What happened on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver answered.
    Answered {
        /// The HTTP status.
        status: u16,
        /// How long it asked us to wait, if it did.
        retry_after: Option<Duration>,
        /// Whether it is a 401 that names a `webhook_*` error: our signature was refused.
        signature_refused: bool,
    },
    /// The URL itself may not be called, whatever it resolves to.
    AddressRefused,
    /// A name resolved to an address that may not be called.
    AnswerRefused,
    /// No answer, for this reason.
    Failed(FailureReason),
    /// The fault is ours: nothing was sent.
    OwnFault(FailureReason),
}

/// Why an attempt or a delivery failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureReason {
    /// 4xx that will not get better.
    Rejected,
    /// 401, 403 or 404 without a reason: maybe a gateway in the middle of a change.
    Unauthorized,
    /// 401 naming a `webhook_*` error.
    SignatureRefused,
    /// 409: the key is bound to another payload.
    KeyConflict,
    /// 410.
    Gone,
    /// 408, 425 or 429.
    Throttled,
    /// 5xx.
    ServerError,
    /// 3xx.
    Redirected,
    /// An answer outside 200 to 599.
    OddStatus,
    /// The URL may not be called.
    AddressRefused,
    /// A DNS answer may not be called.
    AnswerRefused,
    /// No address.
    Dns,
    /// No connection.
    Connect,
    /// No TLS session.
    Tls,
    /// The deadline passed.
    Timeout,
    /// The connection broke, or what came was not HTTP.
    Broken,
    /// The horizon passed.
    HorizonPassed,
    /// The body cannot be rendered.
    Unrenderable,
    /// The registration is gone or cannot be used.
    RegistrationUnusable,
    /// No key to sign with.
    NoSigningKey,
    /// The buyer chose a legacy scheme that is switched off.
    SchemeDisabled,
}

impl FailureReason {
    /// Every reason.
    pub const ALL: [Self; 21] = [
        Self::Rejected,
        Self::Unauthorized,
        Self::SignatureRefused,
        Self::KeyConflict,
        Self::Gone,
        Self::Throttled,
        Self::ServerError,
        Self::Redirected,
        Self::OddStatus,
        Self::AddressRefused,
        Self::AnswerRefused,
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Broken,
        Self::HorizonPassed,
        Self::Unrenderable,
        Self::RegistrationUnusable,
        Self::NoSigningKey,
        Self::SchemeDisabled,
    ];

    /// The word in the database, in labels and in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// One sentence for an operator: what it means and what to do.
    #[must_use]
    pub fn explain(self) -> &'static str {
        self.row().1
    }

    fn row(self) -> (&'static str, &'static str) {
        match self {
            Self::Rejected => {
                ("rejected", "The receiver refused the webhook for good; ask the buyer, then retry it.")
            }
            Self::Unauthorized => (
                "unauthorized",
                "The receiver answered 401, 403 or 404; it is tried slowly until the horizon.",
            ),
            Self::SignatureRefused => (
                "signature_refused",
                "The receiver refused our signature: compare key, published JWKS and clock, then retry it.",
            ),
            Self::KeyConflict => {
                ("key_conflict", "The receiver has this key with another payload; it must not be sent again.")
            }
            Self::Gone => ("gone", "The endpoint is gone; ask the buyer."),
            Self::Throttled => ("throttled", "The receiver asked us to come back later."),
            Self::ServerError => ("server_error", "The receiver failed; it is tried again."),
            Self::Redirected => (
                "redirected",
                "The receiver redirected, which webhooks never follow; ask the buyer for the final URL.",
            ),
            Self::OddStatus => ("odd_status", "The receiver's answer was no status that HTTP knows."),
            Self::AddressRefused => {
                ("address_refused", "The URL points inside a network that must not be called.")
            }
            Self::AnswerRefused => (
                "answer_refused",
                "The host resolves to an address inside a network that must not be called.",
            ),
            Self::Dns => ("dns", "The host has no address at the moment."),
            Self::Connect => ("connect", "No connection could be made."),
            Self::Tls => ("tls", "No TLS session could be made: certificate, name or protocol version."),
            Self::Timeout => ("timeout", "The receiver did not answer within the deadline."),
            Self::Broken => ("broken", "The connection broke before there was a whole answer."),
            Self::HorizonPassed => ("horizon_passed", "Every attempt inside the horizon failed."),
            Self::Unrenderable => ("unrenderable", "No valid webhook can be made of the task."),
            Self::RegistrationUnusable => {
                ("registration_unusable", "The registration is gone or breaks the contract.")
            }
            Self::NoSigningKey => ("no_signing_key", "There is no key to sign with; configure one."),
            Self::SchemeDisabled => {
                ("scheme_disabled", "The buyer chose a legacy scheme that is switched off here.")
            }
        }
    }
}

/// Why a row can never be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsendable {
    /// A member of the envelope is missing or breaks its bounds.
    #[error("{0} cannot be part of a webhook")]
    Member(&'static str),
    /// The body would be larger than receivers take.
    #[error("the body has {bytes} bytes, more than {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The registration is gone or breaks the contract.
    #[error("the registration cannot be used")]
    Registration,
}

impl Unsendable {
    /// The closed word for it.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Member(_) | Self::TooLarge { .. } => FailureReason::Unrenderable,
            Self::Registration => FailureReason::RegistrationUnusable,
        }
    }
}
