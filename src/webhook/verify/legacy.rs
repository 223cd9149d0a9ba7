//! The receiver's half of legacy HMAC-SHA256 (deprecated; AdCP 4.0 removes it).

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use reqwest::header::HeaderMap;
use secrecy::{ExposeSecret, SecretString};

use super::super::SignatureError;
use super::super::sign::{SIGNATURE, SIGNATURE_INPUT, X_ADCP_SIGNATURE, X_ADCP_TIMESTAMP, hmac_message};
use super::joined;

/// Verifies a webhook that was registered with this secret: `X-ADCP-Signature` over the very
/// bytes that came.
///
/// A timestamp can come twice within its ten minutes: the body's `idempotency_key` tells
/// repetitions apart.
///
/// # Errors
/// The [`SignatureError`] to answer with a 401.
pub fn verify_hmac(
    secret: &SecretString,
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
) -> Result<(), SignatureError> {
    if headers.contains_key(SIGNATURE) || headers.contains_key(SIGNATURE_INPUT) {
        return Err(SignatureError::ModeMismatch);
    }
    let signature = joined(headers, &X_ADCP_SIGNATURE).ok_or(SignatureError::HeaderMalformed)?;
    let signature = unhex(&signature).ok_or(SignatureError::HeaderMalformed)?;
    let timestamp = joined(headers, &X_ADCP_TIMESTAMP).ok_or(SignatureError::HeaderMalformed)?;
    if timestamp.is_empty() || !timestamp.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SignatureError::HeaderMalformed);
    }
    let seconds: u64 = timestamp.parse().map_err(|_| SignatureError::WindowInvalid)?;
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if now.abs_diff(seconds) > WINDOW_SECONDS {
        return Err(SignatureError::WindowInvalid);
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes());
    hmac::verify(&key, &hmac_message(&timestamp, body), &signature).map_err(|_| SignatureError::Invalid)
}

/// `sha256=` and 64 lower-case digits.
fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256=").filter(|digits| digits.len() == 64)?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        if !pair.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// How far a timestamp may be from now, either way.
const WINDOW_SECONDS: u64 = 300;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Payload;
    use super::*;

    #[derive(serde::Deserialize)]
    struct Vectors {
        secret: String,
        cases: Vec<Case>,
        refused: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        timestamp: serde_json::Value,
        now: Option<u64>,
        body: String,
        signature: Option<String>,
        error: Option<String>,
    }

    impl Case {
        fn verify(&self, secret: &str) -> Result<(), SignatureError> {
            let timestamp = self.timestamp.as_str().map_or_else(|| self.timestamp.to_string(), str::to_owned);
            let mut headers = HeaderMap::new();
            headers.insert(X_ADCP_TIMESTAMP, timestamp.parse().unwrap());
            if let Some(signature) = &self.signature {
                headers.insert(X_ADCP_SIGNATURE, signature.parse().unwrap());
            }
            let now = self.now.or(self.timestamp.as_u64()).unwrap_or_default();
            verify_hmac(&secret.into(), &headers, self.body.as_bytes(), UNIX_EPOCH + Duration::from_secs(now))
        }
    }

    #[test]
    fn every_vector_verifies_or_is_refused_as_it_says() {
        let vectors: Vectors =
            serde_json::from_str(include_str!("../../../tests/vectors/webhook-hmac.json")).unwrap();
        assert_eq!((vectors.cases.len(), vectors.refused.len()), (15, 10));
        for case in &vectors.cases {
            assert_eq!(case.verify(&vectors.secret), Ok(()), "{}", case.name);
            assert!(case.verify(&"0".repeat(64)).is_err(), "{}", case.name);
            if let Some(error) = &case.error {
                let malformed = Payload::parse(case.body.as_bytes()).unwrap_err();
                assert_eq!(malformed.code().as_str(), error, "{}", case.name);
            }
        }
        for case in &vectors.refused {
            let refused = case.verify(&vectors.secret).unwrap_err();
            assert_eq!(Some(refused.as_str()), case.error.as_deref(), "{}", case.name);
        }
    }

    #[test]
    fn a_request_with_both_kinds_of_proof_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(SIGNATURE, "sig1=:AA:".parse().unwrap());
        let refused = verify_hmac(&"s".repeat(32).into(), &headers, b"", UNIX_EPOCH);
        assert_eq!(refused, Err(SignatureError::ModeMismatch));
    }
}
