//! The receiver's half of the RFC 9421 webhook profile: AdCP's checklist, in its order.
//!
//! [`Verifier::verify`] judges the signature, [`Payload::parse`] then reads the body strictly.
//! [`verify_hmac`] is for registrations that chose the legacy scheme.

mod header;
mod jwks;
mod replay;
mod payload;
mod legacy;

pub use jwks::{JwksError, VerifyingKeys};
pub use legacy::verify_hmac;
pub use payload::{Payload, PayloadError};
pub use replay::ReplayWindow;

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName};

use self::header::SignatureInput;
use super::SignatureError;
use super::sign::{
    COMPONENTS, CONTENT_DIGEST, MAX_VALIDITY_SECONDS, SIGNATURE, SIGNATURE_INPUT, TAG, X_ADCP_SIGNATURE,
    signature_base,
};
use crate::task::canonicalize;

/// Verifies signed webhooks.
#[derive(Debug)]
pub struct Verifier {
    keys: VerifyingKeys,
    revocation: Revocation,
    window: Mutex<ReplayWindow>,
}

/// A request as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Arrived<'a> {
    /// The method.
    pub method: &'a str,
    /// Scheme, `Host` header and request target put together.
    pub url: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The body's bytes.
    pub body: &'a [u8],
}

/// What is known about revoked keys.
#[derive(Debug, Clone, Default)]
pub struct Revocation {
    /// The revoked `kid`s.
    pub kids: HashSet<String>,
    /// Until when the list counts, its grace included; `None` means for ever.
    pub fresh_until: Option<SystemTime>,
}

impl Verifier {
    /// A verifier that accepts signatures of these keys.
    #[must_use]
    pub fn new(keys: VerifyingKeys, revocation: Revocation, window: ReplayWindow) -> Self {
        Self { keys, revocation, window: Mutex::new(window) }
    }

    /// Verifies one request and remembers its nonce. Gives the `kid`.
    ///
    /// # Errors
    /// The [`SignatureError`] to name in a 401's `WWW-Authenticate`.
    pub fn verify(&self, arrived: Arrived<'_>, now: SystemTime) -> Result<String, SignatureError> {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // 1: both headers, well formed.
        let joined = |name: &HeaderName| joined(arrived.headers, name);
        let (input, signature) = match (joined(&SIGNATURE_INPUT), joined(&SIGNATURE)) {
            (Some(input), Some(signature)) => (input, signature),
            (None, None) if is_legacy(arrived.headers) => return Err(SignatureError::ModeMismatch),
            _ => return Err(SignatureError::HeaderMalformed),
        };
        let input = SignatureInput::parse(&input).ok_or(SignatureError::HeaderMalformed)?;
        let signature = header::signature(&signature).ok_or(SignatureError::HeaderMalformed)?;
        // 2 to 6: the parameters and what is covered.
        let params = input.required().ok_or(SignatureError::ParamsIncomplete)?;
        if params.tag != TAG {
            return Err(SignatureError::TagInvalid);
        }
        if !["ed25519", "ecdsa-p256-sha256"].contains(&params.alg) {
            return Err(SignatureError::AlgNotAllowed);
        }
        if params.expires <= params.created
            || params.expires - params.created > MAX_VALIDITY_SECONDS
            || params.created > seconds + MAX_SKEW_SECONDS
            || params.expires + MAX_SKEW_SECONDS < seconds
        {
            return Err(SignatureError::WindowInvalid);
        }
        if input.components.len() != COMPONENTS.len()
            || !COMPONENTS.iter().all(|name| input.components.contains(name))
        {
            return Err(SignatureError::ComponentsIncomplete);
        }
        // 7 to 9: the key.
        let key = self.keys.find(params.keyid).ok_or(SignatureError::KeyUnknown)?;
        if !key.is_for_webhooks() {
            return Err(SignatureError::KeyPurposeInvalid);
        }
        if key.algorithm() != params.alg {
            return Err(SignatureError::AlgNotAllowed);
        }
        if self.revocation.fresh_until.is_some_and(|until| until < now) {
            return Err(SignatureError::RevocationStale);
        }
        if self.revocation.kids.contains(params.keyid) {
            return Err(SignatureError::KeyRevoked);
        }
        if self.window().is_full(params.keyid, seconds) {
            return Err(SignatureError::RateAbuse);
        }
        // 10: the signature, over what arrived.
        let base = base(&arrived, &input)?;
        if !key.verifies(base.as_bytes(), &signature) {
            return Err(SignatureError::Invalid);
        }
        // 11: the body is the one whose digest was signed.
        let declared = joined(&CONTENT_DIGEST).and_then(|text| header::sha256(&text));
        let actual = digest::digest(&digest::SHA256, arrived.body);
        if declared.is_none_or(|declared| verify_slices_are_equal(&declared, actual.as_ref()).is_err()) {
            return Err(SignatureError::DigestMismatch);
        }
        // 12: not seen before.
        let forget_at = params.expires + MAX_SKEW_SECONDS;
        if !self.window().remember(params.keyid, params.nonce, forget_at) {
            return Err(SignatureError::Replayed);
        }
        Ok(params.keyid.to_owned())
    }

    /// A thread that panicked cannot have left half a nonce behind.
    fn window(&self) -> std::sync::MutexGuard<'_, ReplayWindow> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_legacy(headers: &HeaderMap) -> bool {
    headers.contains_key(X_ADCP_SIGNATURE) || headers.contains_key(AUTHORIZATION)
}

/// All lines of a header as one value (RFC 9110 §5.3).
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let lines = headers.get_all(name).iter().map(|value| value.to_str().ok().map(str::trim));
    lines.collect::<Option<Vec<_>>>().filter(|lines| !lines.is_empty()).map(|lines| lines.join(", "))
}

/// The signature base (RFC 9421 §2.5) in the signer's order of components.
fn base(arrived: &Arrived<'_>, input: &SignatureInput<'_>) -> Result<String, SignatureError> {
    // What arrives over HTTP is ASCII; a name in another alphabet has two spellings.
    let canonical = Some(arrived.url).filter(|url| url.is_ascii()).and_then(|url| canonicalize(url).ok());
    let canonical = canonical.ok_or(SignatureError::TargetUriMalformed)?;
    let mut components = Vec::new();
    for name in &input.components {
        let value = match *name {
            "@method" => arrived.method.to_owned(),
            "@target-uri" => canonical.uri.clone(),
            "@authority" => canonical.authority.clone(),
            field => HeaderName::from_bytes(field.as_bytes())
                .ok()
                .and_then(|field| joined(arrived.headers, &field))
                .ok_or(SignatureError::ComponentsIncomplete)?,
        };
        components.push((*name, value));
    }
    Ok(signature_base(components.iter().map(|(name, value)| (*name, value.as_str())), input.raw))
}

/// How far clocks may differ.
const MAX_SKEW_SECONDS: u64 = 60;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::super::{
        IdempotencyKey, KeyRing, LegacyModes, Prepared, Signer, SigningAlgorithm, SigningKey,
    };
    use super::*;
    use crate::task::{CallbackUrl, UrlSchemes};

    #[derive(serde::Deserialize)]
    struct Vectors {
        keys: Vec<Value>,
        accepted: Vec<Case>,
        refused: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        now: u64,
        method: String,
        url: String,
        headers: HashMap<String, String>,
        body: String,
        base: Option<String>,
        error: Option<String>,
        jwks: Option<Vec<Value>>,
        #[serde(default)]
        state: Value,
    }

    impl Case {
        fn headers(&self) -> HeaderMap {
            self.headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect()
        }

        /// A verifier in the state that the vector asks for.
        fn verifier(&self, keys: &[Value]) -> Verifier {
            let keys = json!({"keys": self.jwks.as_deref().unwrap_or(keys)}).to_string();
            let now = UNIX_EPOCH + Duration::from_secs(self.now);
            let mut window = ReplayWindow::new(3);
            for entry in self.state["replay_cache_entries"].as_array().into_iter().flatten() {
                let (kid, nonce) = (entry["keyid"].as_str().unwrap(), entry["nonce"].as_str().unwrap());
                assert!(window.remember(kid, nonce, self.now + 300));
            }
            if let Some(kid) = self.state["per_keyid_cap_filled_for"].as_str() {
                for nonce in ["a", "b", "c"] {
                    assert!(window.remember(kid, nonce, self.now + 300));
                }
            }
            let revoked = self.state["revoked_kids"].as_array().into_iter().flatten();
            let revocation = Revocation {
                kids: revoked.map(|kid| kid.as_str().unwrap().to_owned()).collect(),
                fresh_until: self.state["revocation_list_stale_seconds"]
                    .as_u64()
                    .map(|seconds| now - Duration::from_secs(seconds)),
            };
            Verifier::new(VerifyingKeys::parse(&keys).unwrap(), revocation, window)
        }

        fn verify(&self, verifier: &Verifier) -> Result<String, SignatureError> {
            let headers = self.headers();
            let arrived = Arrived {
                method: &self.method,
                url: &self.url,
                headers: &headers,
                body: self.body.as_bytes(),
            };
            verifier.verify(arrived, UNIX_EPOCH + Duration::from_secs(self.now))
        }
    }

    fn vectors() -> Vectors {
        serde_json::from_str(include_str!("../../../tests/vectors/webhook-signing.json")).unwrap()
    }

    #[test]
    fn every_valid_vector_is_accepted_once() {
        let vectors = vectors();
        assert_eq!(vectors.accepted.len(), 8);
        for case in &vectors.accepted {
            let verifier = case.verifier(&vectors.keys);
            assert!(case.verify(&verifier).is_ok(), "{}: {:?}", case.name, case.verify(&verifier));
            assert_eq!(case.verify(&verifier), Err(SignatureError::Replayed), "{}", case.name);
            let headers = case.headers();
            let arrived = Arrived { method: &case.method, url: &case.url, headers: &headers, body: b"" };
            let input = joined(&headers, &SIGNATURE_INPUT).unwrap();
            let base = base(&arrived, &SignatureInput::parse(&input).unwrap()).unwrap();
            assert_eq!(Some(base), case.base, "{}", case.name);
        }
    }

    #[test]
    fn every_invalid_vector_is_refused_with_its_code() {
        let vectors = vectors();
        assert_eq!(vectors.refused.len(), 21);
        for case in &vectors.refused {
            let refused = case.verify(&case.verifier(&vectors.keys)).unwrap_err();
            assert_eq!(Some(refused.as_str()), case.error.as_deref(), "{}", case.name);
        }
    }

    #[test]
    fn what_this_side_signs_verifies_with_both_algorithms() {
        for algorithm in [SigningAlgorithm::Ed25519, SigningAlgorithm::EcdsaP256] {
            let key = SigningKey::generate(algorithm, Some("a \"quoted\\ kid")).unwrap();
            let ring = KeyRing::new(vec![key]).unwrap();
            let keys = VerifyingKeys::parse(&ring.jwks(UNIX_EPOCH).to_string()).unwrap();
            let verifier = Verifier::new(keys, Revocation::default(), ReplayWindow::new(10));
            let url = "https://B\u{fc}cher.example:443/a/%2e%2e/h%7ek/\u{e9}?q='%7e\u{e9}#f";
            let prepared = Prepared {
                url: CallbackUrl::parse(url, UrlSchemes::HttpsOnly).unwrap(),
                key: IdempotencyKey::parse("whk_00000000-0000-4000-8000-000000000001").unwrap(),
                body: Bytes::from_static(b"{}"),
                authentication: None,
                signing_scope: None,
            };
            let now = UNIX_EPOCH + Duration::from_secs(1_776_520_800);
            let headers = Signer::new(ring, LegacyModes::default()).headers(&prepared, now).unwrap();
            let url = prepared.url.target().url().as_str();
            let arrived = |method, body| Arrived { method, url, headers: &headers, body };
            let later = |seconds| now + Duration::from_secs(seconds);
            assert_eq!(verifier.verify(arrived("PUT", b"{}"), now), Err(SignatureError::Invalid));
            assert_eq!(verifier.verify(arrived("POST", b"[]"), now), Err(SignatureError::DigestMismatch));
            assert_eq!(
                verifier.verify(arrived("POST", b"{}"), later(361)),
                Err(SignatureError::WindowInvalid)
            );
            assert_eq!(verifier.verify(arrived("POST", b"{}"), later(360)).unwrap(), "a \"quoted\\ kid");
        }
    }

    #[test]
    fn a_request_in_a_legacy_mode_is_told_apart_from_an_unsigned_one() {
        let keys = VerifyingKeys::parse(r#"{"keys":[]}"#).unwrap();
        let verifier = Verifier::new(keys, Revocation::default(), ReplayWindow::new(1));
        let mut headers = HeaderMap::new();
        let verify = |headers: &HeaderMap| {
            let arrived = Arrived { method: "POST", url: "https://h.example/", headers, body: b"" };
            verifier.verify(arrived, UNIX_EPOCH)
        };
        assert_eq!(verify(&headers), Err(SignatureError::HeaderMalformed));
        headers.insert(X_ADCP_SIGNATURE, "sha256=00".parse().unwrap());
        assert_eq!(verify(&headers), Err(SignatureError::ModeMismatch));
    }
}
