//! Proves the sender: the RFC 9421 webhook profile, or the legacy mode that a buyer asked for.
//!
//! A retry differs from the first attempt in `created`, `expires` and the nonce and in nothing
//! else. Exactly one mode signs a request; there is no falling back from one to another.

use std::fmt::Write as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret;

use super::{KeySets, Outcome, OwnFault, Prepared, SigningKey, Unsendable};
use crate::task::{Authentication, Target};

/// Signs requests with the configured keys and modes.
pub struct Signer {
    keys: RwLock<Arc<KeySets>>,
    legacy: LegacyModes,
    nonces: Box<dyn Fn() -> Option<Nonce> + Send + Sync>,
}

/// Which deprecated modes may be used for registrations that ask for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegacyModes {
    /// HMAC-SHA256.
    pub hmac: bool,
    /// Bearer.
    pub bearer: bool,
}

impl Default for LegacyModes {
    /// Both: a registration that was accepted is owed its webhook.
    fn default() -> Self {
        Self { hmac: true, bearer: true }
    }
}

/// A signature's nonce: 16 random bytes as 22 characters of base64url.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nonce(String);

impl Nonce {
    /// A nonce of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// A fresh nonce; `None` when the system gives no random bytes.
    #[must_use]
    pub fn random() -> Option<Self> {
        let mut bytes = [0; 16];
        rand::fill(&mut bytes).ok().map(|()| Self::new(bytes))
    }
}

impl Signer {
    /// A signer with fresh random nonces.
    #[must_use]
    pub fn new(keys: impl Into<KeySets>, legacy: LegacyModes) -> Self {
        Self { keys: RwLock::new(Arc::new(keys.into())), legacy, nonces: Box::new(Nonce::random) }
    }

    /// The same signer with another source of nonces.
    #[must_use]
    pub fn with_nonces(self, nonces: impl Fn() -> Option<Nonce> + Send + Sync + 'static) -> Self {
        Self { nonces: Box::new(nonces), ..self }
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> Arc<KeySets> {
        // Whoever panicked with the lock held had only cloned or replaced an `Arc`.
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Signs with other keys from now on.
    pub fn replace_keys(&self, keys: KeySets) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    /// `Content-Type` and the headers that prove the sender, made for one attempt.
    ///
    /// # Errors
    /// What the attempt comes to instead; nothing is then sent.
    pub fn headers(&self, prepared: &Prepared, now: SystemTime) -> Result<HeaderMap, Outcome> {
        let seconds = now.duration_since(UNIX_EPOCH).map_err(|_| OwnFault::Signing)?.as_secs();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        match &prepared.authentication {
            None => {
                let keys = self.keys();
                let ring = keys.ring(prepared.signing_scope.as_ref()).ok_or(OwnFault::UnknownSigningScope)?;
                let key = ring.signing(now).ok_or(OwnFault::NoSigningKey)?;
                let nonce = (self.nonces)().ok_or(OwnFault::Signing)?;
                let signed = Signed::new(key, prepared.url.target(), &prepared.body, seconds, &nonce)?;
                headers.insert(CONTENT_DIGEST, secret_value(&signed.content_digest)?);
                headers.insert(SIGNATURE_INPUT, secret_value(&format!("{LABEL}={}", signed.params))?);
                headers.insert(SIGNATURE, secret_value(&format!("{LABEL}=:{}:", signed.signature))?);
            }
            Some(Authentication::HmacSha256(secret)) if self.legacy.hmac => {
                let timestamp = seconds.to_string();
                let signature = hmac_sha256(secret.expose_secret(), &timestamp, &prepared.body);
                headers.insert(X_ADCP_SIGNATURE, secret_value(&signature)?);
                headers.insert(X_ADCP_TIMESTAMP, secret_value(&timestamp)?);
            }
            Some(Authentication::Bearer(secret)) if self.legacy.bearer => {
                let value = secret_value(&format!("Bearer {}", secret.expose_secret()));
                headers
                    .insert(AUTHORIZATION, value.map_err(|_| Outcome::Unsendable(Unsendable::Credentials))?);
            }
            Some(other) => return Err(OwnFault::LegacyModeOff(other.scheme()).into()),
        }
        Ok(headers)
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("keys", &self.keys())
            .field("legacy", &self.legacy)
            .finish_non_exhaustive()
    }
}

/// One RFC 9421 signature under `adcp/webhook-signing/v1`.
struct Signed {
    content_digest: String,
    /// The value of `@signature-params`.
    params: String,
    /// Unpadded base64url, which this version of the profile wants in place of RFC 8941's.
    signature: String,
}

impl Signed {
    fn new(
        key: &SigningKey,
        target: &Target,
        body: &[u8],
        created: u64,
        nonce: &Nonce,
    ) -> Result<Self, OwnFault> {
        let content_digest = content_digest(body);
        let params = format!(
            "({COVERED});created={created};expires={};nonce=\"{}\";keyid={};alg=\"{}\";tag=\"{TAG}\"",
            created + MAX_VALIDITY_SECONDS,
            nonce.0,
            quoted(key.kid()),
            key.algorithm().as_str(),
        );
        let values = ["POST", target.uri(), target.authority(), JSON, &content_digest];
        let base = signature_base(COMPONENTS.into_iter().zip(values), &params);
        let signature = key.sign(base.as_bytes()).ok_or(OwnFault::Signing)?;
        Ok(Self { content_digest, params, signature: URL_SAFE_NO_PAD.encode(signature) })
    }
}

/// The signature base (RFC 9421 §2.5): a line per component, the parameters last, no final LF.
pub(super) fn signature_base<'a>(
    components: impl IntoIterator<Item = (&'a str, &'a str)>,
    params: &'a str,
) -> String {
    let mut base = String::with_capacity(512);
    for (name, value) in components.into_iter().chain([("@signature-params", params)]) {
        for part in ["\"", name, "\": ", value, "\n"] {
            base.push_str(part);
        }
    }
    base.pop(); // the last LF
    base
}

/// `sha-256=:…:` in padded standard base64 (RFC 9530), which every AdCP vector has.
pub(super) fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(digest::digest(&digest::SHA256, body)))
}

/// AdCP's legacy HMAC: over `timestamp.body`, keyed with the UTF-8 text of the secret.
fn hmac_sha256(secret: &str, timestamp: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hmac::sign(&key, &hmac_message(timestamp, body)).as_ref().iter().fold(
        String::from("sha256="),
        |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        },
    )
}

/// What the legacy HMAC covers.
pub(super) fn hmac_message(timestamp: &str, body: &[u8]) -> Vec<u8> {
    [timestamp.as_bytes(), b".", body].concat()
}

/// An sf-string (RFC 8941 §4.1.6); a `kid` has only characters that may stand in one.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

fn secret_value(text: &str) -> Result<HeaderValue, OwnFault> {
    let mut value = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| OwnFault::Signing)?;
    value.set_sensitive(true);
    Ok(value)
}

/// The profile's tag.
pub(super) const TAG: &str = "adcp/webhook-signing/v1";
/// The one label that receivers look at.
pub(super) const LABEL: &str = "sig1";
/// What a signature covers, in this order, and nothing else.
pub(super) const COMPONENTS: [&str; 5] =
    ["@method", "@target-uri", "@authority", "content-type", "content-digest"];
/// The same in a signature's parameters.
const COVERED: &str = r#""@method" "@target-uri" "@authority" "content-type" "content-digest""#;
/// Longest life of a signature that receivers accept.
pub(super) const MAX_VALIDITY_SECONDS: u64 = 300;
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
pub(super) const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
pub(super) const SIGNATURE: HeaderName = HeaderName::from_static("signature");
pub(super) const X_ADCP_SIGNATURE: HeaderName = HeaderName::from_static("x-adcp-signature");
pub(super) const X_ADCP_TIMESTAMP: HeaderName = HeaderName::from_static("x-adcp-timestamp");
/// Signed as sent, so without a charset.
const JSON: &str = "application/json";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use secrecy::SecretString;

    use super::super::{IdempotencyKey, KeyRing};
    use super::*;
    use crate::task::{CallbackUrl, UrlSchemes};

    #[derive(serde::Deserialize)]
    struct Vectors {
        keys: Vec<serde_json::Value>,
        requests: Vec<Request>,
    }

    #[derive(serde::Deserialize)]
    struct Request {
        id: String,
        kid: String,
        alg: String,
        url: String,
        created: u64,
        nonce: String,
        body_utf8: String,
        content_digest: String,
        signature_input: String,
        signature: String,
        signature_base: String,
    }

    fn prepared(url: &str, body: &str, authentication: Option<Authentication>) -> Prepared {
        Prepared {
            url: CallbackUrl::parse(url, UrlSchemes::HttpsOnly).unwrap(),
            key: IdempotencyKey::parse("whk_00000000-0000-4000-8000-000000000001").unwrap(),
            body: Bytes::from(body.to_owned()),
            authentication,
            signing_scope: None,
        }
    }

    fn header(headers: &HeaderMap, name: impl reqwest::header::AsHeaderName) -> &str {
        headers.get(name).unwrap().to_str().unwrap()
    }

    #[test]
    fn requests_of_the_sdk_are_reproduced_byte_for_byte() {
        let vectors: Vectors =
            serde_json::from_str(include_str!("../../tests/vectors/webhook-signing-sdk.json")).unwrap();
        for case in &vectors.requests {
            let jwk = vectors.keys.iter().find(|jwk| jwk["kid"] == case.kid.as_str()).unwrap();
            let key = SigningKey::parse(&jwk.to_string(), None).unwrap();
            assert_eq!(key.algorithm().as_str(), case.alg);
            let nonce = Nonce(case.nonce.clone());
            let signer = Signer::new(KeyRing::new(vec![key]).unwrap(), LegacyModes::default())
                .with_nonces(move || Some(nonce.clone()));
            let prepared = prepared(&case.url, &case.body_utf8, None);
            let target = prepared.url.target();
            let now = UNIX_EPOCH + Duration::from_secs(case.created);
            let headers = signer.headers(&prepared, now).unwrap();
            assert_eq!(header(&headers, CONTENT_DIGEST), case.content_digest, "{}", case.id);
            assert_eq!(header(&headers, SIGNATURE_INPUT), case.signature_input, "{}", case.id);
            assert_eq!(header(&headers, CONTENT_TYPE), "application/json");
            let params = case.signature_input.strip_prefix("sig1=").unwrap();
            let values = ["POST", target.uri(), target.authority(), JSON, &case.content_digest];
            assert_eq!(
                signature_base(COMPONENTS.into_iter().zip(values), params),
                case.signature_base,
                "{}",
                case.id
            );
            // ECDSA is randomized; the verifier's tests accept its signatures.
            if case.alg == "ed25519" {
                assert_eq!(header(&headers, SIGNATURE), case.signature, "{}", case.id);
            }
        }
        assert!(vectors.requests.iter().filter(|case| case.alg == "ed25519").count() >= 5);
    }

    #[test]
    fn a_kid_with_quotes_is_escaped() {
        assert_eq!(quoted(r#"golden kid "quoted\"#), r#""golden kid \"quoted\\""#);
    }

    #[derive(serde::Deserialize)]
    struct Legacy {
        cases: Vec<LegacyCase>,
    }

    #[derive(serde::Deserialize)]
    struct LegacyCase {
        id: String,
        scheme: String,
        credentials: String,
        timestamp: Option<u64>,
        body_utf8: String,
        header: String,
    }

    #[test]
    fn legacy_headers_are_those_of_the_sdk() {
        let vectors: Legacy =
            serde_json::from_str(include_str!("../../tests/vectors/webhook-legacy-sdk.json")).unwrap();
        let signer = Signer::new(KeyRing::default(), LegacyModes::default());
        for case in vectors.cases {
            let secret = SecretString::from(case.credentials);
            let (authentication, name) = match case.scheme.as_str() {
                "Bearer" => (Authentication::Bearer(secret), AUTHORIZATION),
                _ => (Authentication::HmacSha256(secret), X_ADCP_SIGNATURE),
            };
            let prepared = prepared("https://buyer.example/h", &case.body_utf8, Some(authentication));
            let now = UNIX_EPOCH + Duration::from_secs(case.timestamp.unwrap_or_default());
            let headers = signer.headers(&prepared, now).unwrap();
            assert_eq!(header(&headers, &name), case.header, "{}", case.id);
            assert!(headers.get(SIGNATURE).is_none() && headers.get(CONTENT_DIGEST).is_none());
            assert_eq!(headers.get(X_ADCP_TIMESTAMP).is_some(), case.timestamp.is_some(), "{}", case.id);
        }
    }

    #[derive(serde::Deserialize)]
    struct Hmac {
        secret: String,
        cases: Vec<HmacCase>,
    }

    #[derive(serde::Deserialize)]
    struct HmacCase {
        name: String,
        timestamp: u64,
        body: String,
        signature: String,
    }

    #[test]
    fn hmac_signatures_are_those_of_the_spec() {
        let vectors: Hmac =
            serde_json::from_str(include_str!("../../tests/vectors/webhook-hmac.json")).unwrap();
        assert!(vectors.cases.len() >= 15);
        for case in vectors.cases {
            let signature = hmac_sha256(&vectors.secret, &case.timestamp.to_string(), case.body.as_bytes());
            assert_eq!(signature, case.signature, "{}", case.name);
        }
    }

    #[test]
    fn nothing_is_signed_in_a_mode_that_is_off_or_without_a_key() {
        let signer = Signer::new(KeyRing::default(), LegacyModes { hmac: false, bearer: false });
        let secret = || SecretString::from("cc237f7fe354609bb41360c6530a2deb");
        for (authentication, fault) in [
            (None, OwnFault::NoSigningKey),
            (Some(Authentication::Bearer(secret())), OwnFault::LegacyModeOff("Bearer")),
            (Some(Authentication::HmacSha256(secret())), OwnFault::LegacyModeOff("HMAC-SHA256")),
        ] {
            let prepared = prepared("https://buyer.example/h", "{}", authentication);
            assert_eq!(signer.headers(&prepared, UNIX_EPOCH).unwrap_err(), Outcome::OwnFault(fault));
        }
    }

    #[test]
    fn bearer_credentials_that_no_header_can_carry_are_the_rows_fault() {
        let signer = Signer::new(KeyRing::default(), LegacyModes::default());
        let headers = |credentials: &str| {
            let authentication = Some(Authentication::Bearer(SecretString::from(credentials)));
            signer.headers(&prepared("https://buyer.example/h", "{}", authentication), UNIX_EPOCH)
        };
        assert_eq!(
            headers("schl\u{fc}ssel").unwrap()[AUTHORIZATION].as_bytes(),
            "Bearer schl\u{fc}ssel".as_bytes()
        );
        assert_eq!(headers("a\u{1}b").unwrap_err(), Outcome::Unsendable(Unsendable::Credentials));
    }

    #[test]
    fn every_attempt_has_a_nonce_of_its_own() {
        let (one, two) = (Nonce::random().unwrap(), Nonce::random().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.0.len(), 22);
    }
}
