//! Proves who sends: the AdCP webhook profile of RFC 9421, and the two legacy schemes.
//!
//! The time and the nonce are arguments: a retry has fresh ones, over the same bytes.

use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};

use super::key::{KeyError, SigningKey};
use super::target::Target;

/// The signature's `tag` (AdCP security, webhook profile).
pub const TAG: &str = "adcp/webhook-signing/v1";
/// How long a signature is valid, in seconds: the most that receivers accept.
pub const WINDOW_SECONDS: u64 = 300;
/// The one content type of webhooks, exactly as it is signed.
pub const CONTENT_TYPE: &str = "application/json";
/// The covered components, in the order of the profile.
pub const COMPONENTS: [&str; 5] = ["@method", "@target-uri", "@authority", "content-type", "content-digest"];

/// Names and values of the headers that prove the sender.
pub type Headers = Vec<(&'static str, String)>;

/// Sixteen random bytes, as AdCP wants nonces.
#[derive(Debug, Clone, Copy)]
pub struct Nonce(pub [u8; 16]);

impl Nonce {
    /// A fresh one.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the system has no randomness.
    pub fn random() -> Result<Self, KeyError> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Random)?;
        Ok(Self(bytes))
    }
}

/// Signs a body for a target (RFC 9421 §3.1): `Content-Digest`, `Signature-Input`, `Signature`.
///
/// # Errors
/// [`KeyError`] when the key cannot sign.
pub fn sign(
    key: &SigningKey,
    target: &Target,
    body: &[u8],
    created: u64,
    nonce: Nonce,
) -> Result<Headers, KeyError> {
    let digest = content_digest(body);
    let components = COMPONENTS.map(|name| format!("\"{name}\"")).join(" ");
    let parameters = format!(
        r#"({components});created={created};expires={};nonce="{}";keyid="{}";alg="{}";tag="{TAG}""#,
        created + WINDOW_SECONDS,
        URL_SAFE_NO_PAD.encode(nonce.0),
        escape(key.kid()),
        key.algorithm().as_str(),
    );
    let signature = key.sign(base(target, &digest, &parameters).as_bytes())?;
    Ok(vec![
        ("content-digest", digest),
        ("signature-input", format!("sig1={parameters}")),
        // Unpadded base64url, unlike RFC 8941's byte sequences: AdCP's webhook profile wants it.
        ("signature", format!("sig1=:{}:", URL_SAFE_NO_PAD.encode(signature))),
    ])
}

/// The legacy HMAC over the very bytes sent: `sha256=` and the hex digest of `timestamp.body`.
#[must_use]
pub fn hmac_sha256(secret: &SecretString, body: &[u8], timestamp: u64) -> Headers {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(timestamp.to_string().as_bytes());
    context.update(b".");
    context.update(body);
    let hex: String = context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    vec![("x-adcp-signature", format!("sha256={hex}")), ("x-adcp-timestamp", timestamp.to_string())]
}

/// The legacy Bearer header.
#[must_use]
pub fn bearer(secret: &SecretString) -> Headers {
    vec![("authorization", format!("Bearer {}", secret.expose_secret()))]
}

/// `Content-Digest` (RFC 9530), in padded standard base64.
pub(super) fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(digest::digest(&digest::SHA256, body)))
}

/// The signature base (RFC 9421 §2.5).
pub(super) fn base(target: &Target, digest: &str, parameters: &str) -> String {
    format!(
        "\"@method\": POST\n\"@target-uri\": {}\n\"@authority\": {}\n\"content-type\": {CONTENT_TYPE}\n\
         \"content-digest\": {digest}\n\"@signature-params\": {parameters}",
        target.uri(),
        target.authority(),
    )
}

/// An sf-string's content (RFC 8941 §3.3.3). Key ids are printable ASCII by parsing.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    /// AdCP 3.2.0-beta.5 webhook-signing vectors and requests signed by the AdCP Python SDK
    /// 9.2.0, with the public test keys of both.
    const VECTORS: &str = include_str!("../../tests/vectors/signed_webhooks.json");

    #[derive(Deserialize)]
    struct Vectors {
        keys: Vec<serde_json::Value>,
        requests: Vec<Request>,
        hmac: Vec<Hmac>,
    }

    #[derive(Deserialize)]
    struct Request {
        kid: String,
        url: String,
        body: String,
        created: u64,
        nonce: String,
        content_digest: String,
        signature_input: String,
        signature: String,
        base: String,
    }

    #[derive(Deserialize)]
    struct Hmac {
        secret: String,
        timestamp: u64,
        body: String,
        signature: String,
    }

    #[test]
    fn requests_signed_elsewhere_are_signed_the_same_here() {
        let vectors: Vectors = serde_json::from_str(VECTORS).unwrap();
        let keys: Vec<SigningKey> =
            vectors.keys.iter().map(|jwk| SigningKey::parse(&jwk.to_string().into()).unwrap()).collect();
        assert!(vectors.requests.len() >= 12);
        for request in &vectors.requests {
            let key = keys.iter().find(|key| key.kid() == request.kid).unwrap();
            let target = Target::parse(&request.url).unwrap();
            let nonce = URL_SAFE_NO_PAD.decode(&request.nonce).unwrap();
            let nonce = Nonce(nonce.try_into().unwrap());
            let headers = sign(key, &target, request.body.as_bytes(), request.created, nonce).unwrap();
            assert_eq!(headers[0].1, request.content_digest);
            assert_eq!(headers[1].1, request.signature_input);
            let parameters = request.signature_input.strip_prefix("sig1=").unwrap();
            assert_eq!(base(&target, &request.content_digest, parameters), request.base);
            if key.algorithm().as_str() == "ed25519" {
                assert_eq!(headers[2].1, request.signature);
            }
        }
    }

    #[test]
    fn the_specs_hmac_vectors_hold() {
        let vectors: Vectors = serde_json::from_str(VECTORS).unwrap();
        assert_eq!(vectors.hmac.len(), 15);
        for vector in vectors.hmac {
            let headers = hmac_sha256(&vector.secret.into(), vector.body.as_bytes(), vector.timestamp);
            assert_eq!(headers[0].1, vector.signature);
        }
    }
}
