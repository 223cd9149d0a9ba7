//! The sender's published keys.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};

use super::super::SigningAlgorithm;
use super::super::key::{ACCEPTED_PURPOSES, UNCOMPRESSED, coordinate};

/// The keys of one JWKS document.
#[derive(Debug, Clone, Default)]
pub struct VerifyingKeys(Vec<VerifyingKey>);

/// One published key.
#[derive(Debug, Clone)]
pub(super) struct VerifyingKey {
    kid: String,
    algorithm: SigningAlgorithm,
    public: Vec<u8>,
    is_for_webhooks: bool,
}

impl VerifyingKeys {
    /// Reads a JWKS document. Keys of other kinds and malformed ones are left out: they are not
    /// this profile's business, and a signature that names one has an unknown key.
    ///
    /// # Errors
    /// [`JwksError`] when it is no JWKS at all.
    pub fn parse(text: &str) -> Result<Self, JwksError> {
        #[derive(serde::Deserialize)]
        struct Document {
            keys: Vec<serde_json::Value>,
        }
        let is_object = text.trim_start().starts_with('{');
        let document: Document = serde_json::from_str(text).ok().filter(|_| is_object).ok_or(JwksError)?;
        let keys = document.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
        Ok(Self(keys.filter_map(Jwk::verifying_key).collect()))
    }

    pub(super) fn find(&self, kid: &str) -> Option<&VerifyingKey> {
        self.0.iter().find(|key| key.kid == kid)
    }
}

impl VerifyingKey {
    /// Whether it is published for verifying webhooks.
    pub fn is_for_webhooks(&self) -> bool {
        self.is_for_webhooks
    }

    /// The name of its algorithm in a signature's parameters.
    pub fn algorithm(&self) -> &'static str {
        self.algorithm.as_str()
    }

    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match self.algorithm {
            SigningAlgorithm::Ed25519 => {
                UnparsedPublicKey::new(&ED25519, &self.public).verify(message, signature)
            }
            SigningAlgorithm::EcdsaP256 => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public).verify(message, signature)
            }
        };
        verified.is_ok()
    }
}

#[derive(serde::Deserialize)]
struct Jwk {
    kid: String,
    kty: String,
    crv: String,
    x: String,
    y: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    key_ops: Vec<String>,
    adcp_use: Option<String>,
}

impl Jwk {
    fn verifying_key(self) -> Option<VerifyingKey> {
        let x = coordinate(&self.x).ok()?;
        let (algorithm, public) = match (self.kty.as_str(), self.crv.as_str(), &self.y) {
            ("OKP", "Ed25519", None) => (SigningAlgorithm::Ed25519, x.to_vec()),
            ("EC", "P-256", Some(y)) => {
                (SigningAlgorithm::EcdsaP256, [&[UNCOMPRESSED], &x[..], &coordinate(y).ok()?[..]].concat())
            }
            _ => return None,
        };
        let is_for_webhooks = self.usage.is_none_or(|usage| usage == "sig")
            && self.key_ops.iter().any(|operation| operation == "verify")
            && self.adcp_use.is_some_and(|purpose| ACCEPTED_PURPOSES.contains(&purpose.as_str()));
        Some(VerifyingKey { kid: self.kid, algorithm, public, is_for_webhooks })
    }
}

/// Not a JSON object with an array `keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the document is no JWKS: a JSON object with an array `keys`")]
pub struct JwksError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_other_kinds_are_left_out() {
        let text = r#"{"keys":[{"kid":"r","kty":"RSA","n":"x","e":"AQAB"},{"kid":"short","kty":"OKP","crv":"Ed25519","x":"AA"},
            {"kid":"k","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        let keys = VerifyingKeys::parse(text).unwrap();
        assert_eq!(keys.0.len(), 1);
        assert!(!keys.find("k").unwrap().is_for_webhooks());
        assert!(VerifyingKeys::parse("[]").is_err() && VerifyingKeys::parse("[[]]").is_err());
    }
}
