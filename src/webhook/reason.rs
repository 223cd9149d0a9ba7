//! The closed sets in which failures are stored, counted and shown: never a receiver's words.

use std::fmt;
use std::str::FromStr;

/// Declares a closed set of words, so that the list, the word and its meaning stand together.
macro_rules! closed_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal, $meaning:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = concat!("`", $word, "`: ", $meaning)] $(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// Every member, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word, the same in a column, a label and a log line.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// What it means, in a sentence for an operator.
            #[must_use]
            pub fn explain(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownReason;
            fn from_str(text: &str) -> Result<Self, UnknownReason> {
                Self::ALL.iter().copied().find(|one| one.as_str() == text).ok_or(UnknownReason)
            }
        }
    };
}

closed_set! {
    /// Why an attempt or a whole delivery failed. An HTTP status is kept beside it.
    FailureReason {
        Rejected = "rejected", "The receiver refused the webhook for good; ask the buyer, then retry it.";
        Unauthorized = "unauthorized", "The receiver answered 401, 403 or 404; it is tried slowly until the horizon.";
        Throttled = "throttled", "The receiver asked to be left alone for a while; it is tried again.";
        ServerError = "server_error", "The receiver answered with a server error; it is tried again.";
        KeyConflict = "key_conflict", "The receiver answered 409: it holds another payload under this idempotency key.";
        Gone = "gone", "The receiver answered 410: the endpoint is gone for good.";
        Redirected = "redirected", "The receiver answered with a redirect, and webhooks never follow one.";
        SignatureRefused = "signature_refused", "The receiver answered 401 and named a signature error: look at the key, the JWKS and the clock.";
        AddressRefused = "address_refused", "The URL names an address, host, port or scheme that must not be called.";
        AnswerRefused = "answer_refused", "DNS gave an address inside a network that must not be called.";
        Dns = "dns", "The host name could not be resolved.";
        Connect = "connect", "No connection to the receiver could be made.";
        Tls = "tls", "The TLS handshake failed: an untrusted or wrong certificate, or no common version.";
        Timeout = "timeout", "The attempt's time ran out before the receiver answered.";
        Reset = "reset", "The receiver closed the connection while the request was on its way.";
        ResponseBroken = "response_broken", "The connection ended before a whole answer, or the answer was not HTTP.";
        HorizonPassed = "horizon_passed", "The retry horizon passed without an acknowledgement.";
        Cancelled = "cancelled", "An operator cancelled the delivery.";
        RegistrationMalformed = "registration_malformed", "The stored callback URL, token or authentication can never be used.";
        UnknownTaskType = "unknown_task_type", "The task type is not one that receivers accept in a webhook.";
        Unopenable = "unopenable", "The sealed registration or body was altered, or belongs to another task.";
        Unrenderable = "unrenderable", "The stored task cannot be rendered as a webhook.";
        DuplicateKeys = "duplicate_keys", "The stored result has an object with the same key twice.";
        BodyTooLarge = "body_too_large", "The body would exceed 10 MiB.";
        NoSigningKey = "no_signing_key", "The buyer expects a signature and no signing key is configured here.";
        UnknownSigningScope = "unknown_signing_scope", "No key set is configured here for the registration's signing scope.";
        NoSealingKey = "no_sealing_key", "The registration was sealed with a key that is not configured here.";
        LegacyModeOff = "legacy_mode_off", "The buyer asked for a legacy authentication that is switched off here.";
        Internal = "internal", "The daemon itself failed during the attempt; its log says how.";
    }
}

impl FailureReason {
    /// The reason that a status alone gives; `None` for a 2xx.
    #[must_use]
    pub fn of_status(status: u16) -> Option<Self> {
        match status {
            200..=299 => None,
            300..=399 => Some(Self::Redirected),
            409 => Some(Self::KeyConflict),
            410 => Some(Self::Gone),
            408 | 425 | 429 => Some(Self::Throttled),
            401 | 403 | 404 => Some(Self::Unauthorized),
            400..=499 => Some(Self::Rejected),
            500..=599 => Some(Self::ServerError),
            _ => Some(Self::ResponseBroken),
        }
    }
}

closed_set! {
    /// What a receiver names in `WWW-Authenticate: Signature error="…"` (AdCP security, webhook
    /// verifier checklist). [`SignatureError::Other`] stands for codes that later versions add.
    SignatureError {
        HeaderMalformed = "webhook_signature_header_malformed", "The signature headers are missing or malformed.";
        ParamsIncomplete = "webhook_signature_params_incomplete", "A required signature parameter is missing.";
        TagInvalid = "webhook_signature_tag_invalid", "The tag is not that of the webhook profile.";
        AlgNotAllowed = "webhook_signature_alg_not_allowed", "The algorithm is neither ed25519 nor ecdsa-p256-sha256.";
        WindowInvalid = "webhook_signature_window_invalid", "The signature is expired, not yet valid or valid for too long: compare the clocks.";
        ComponentsIncomplete = "webhook_signature_components_incomplete", "The signature does not cover what the profile requires.";
        KeyUnknown = "webhook_signature_key_unknown", "The receiver finds no such key in the published JWKS.";
        KeyPurposeInvalid = "webhook_signature_key_purpose_invalid", "The published key is not meant for webhooks.";
        KeyRevoked = "webhook_signature_key_revoked", "The key is on the revocation list.";
        RevocationStale = "webhook_signature_revocation_stale", "The receiver could not refresh the revocation list.";
        RateAbuse = "webhook_signature_rate_abuse", "The receiver holds as many nonces of this key as it takes.";
        Invalid = "webhook_signature_invalid", "The signature does not verify under the published key.";
        DigestMismatch = "webhook_signature_digest_mismatch", "The body is not the one that was signed.";
        Replayed = "webhook_signature_replayed", "The nonce was used before.";
        BodyMalformed = "webhook_body_malformed", "The receiver could not read the body.";
        TargetUriMalformed = "webhook_target_uri_malformed", "The receiver could not canonicalize the URL.";
        ModeMismatch = "webhook_mode_mismatch", "The receiver expected the other kind of authentication.";
        Other = "webhook_other", "The receiver named a webhook error that this version does not know.";
    }
}

impl SignatureError {
    /// Reads the values of `WWW-Authenticate`, tolerantly: any `error` parameter anywhere whose
    /// value starts with `webhook_` counts, quoted or not.
    pub fn find<'a>(challenges: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        challenges.into_iter().find_map(|challenge| {
            challenge
                .split([',', ' ', '\t', ';'])
                .filter_map(|part| part.split_once('='))
                .filter(|(name, _)| name.trim().eq_ignore_ascii_case("error"))
                .map(|(_, value)| value.trim().trim_matches('"'))
                .find(|code| code.starts_with("webhook_"))
                .map(|code| code.parse().unwrap_or(Self::Other))
        })
    }
}

/// A word that is none of the set's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such reason")]
pub struct UnknownReason;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_snake_case_and_reads_back() {
        for reason in FailureReason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
            assert!(
                reason.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            );
            assert!(reason.explain().ends_with('.'));
        }
        assert_eq!("nonsense".parse::<FailureReason>(), Err(UnknownReason));
    }

    #[test]
    fn challenges_are_read_tolerantly() {
        for (text, expected) in [
            (r#"Signature error="webhook_signature_invalid""#, Some(SignatureError::Invalid)),
            (
                r#"signature realm="x", error="webhook_signature_key_unknown", hint="y""#,
                Some(SignatureError::KeyUnknown),
            ),
            ("Signature error=webhook_mode_mismatch", Some(SignatureError::ModeMismatch)),
            (r#"Signature Error="webhook_of_next_year""#, Some(SignatureError::Other)),
            (r#"Bearer realm="api", error="invalid_token""#, None),
            ("Basic", None),
            ("", None),
        ] {
            assert_eq!(SignatureError::find([text]), expected, "{text}");
        }
        assert_eq!(
            SignatureError::find(["Basic", r#"Signature error="webhook_signature_replayed""#]),
            Some(SignatureError::Replayed)
        );
    }
}
