//! Signing keys: read from JWK or PEM, generated, published as a JWKS.
//!
//! Two algorithms exist in the profile, Ed25519 and ECDSA on P-256. A key never shows its
//! private half except through [`SigningKey::to_private_jwk`], for a file that only its owner
//! may read. Which key of several signs, and until when each is published, is [`KeyRing`]'s.

mod ring;

pub use ring::{KeyRing, KeySets, RotationError};

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin, EcPrivateKeyBin};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// A signature algorithm of the webhook profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningAlgorithm {
    /// `ed25519`.
    Ed25519,
    /// `ecdsa-p256-sha256`.
    EcdsaP256,
}

impl SigningAlgorithm {
    /// The name in `alg` of a signature's parameters (RFC 9421 §6.2).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256 => "ecdsa-p256-sha256",
        }
    }
}

/// A private key with the `kid` under which its public half is published.
pub struct SigningKey {
    kid: String,
    pair: Pair,
    purpose: &'static str,
    /// `nbf`, in Unix seconds: published before it signs. `None`: it may sign at once.
    signs_from: Option<u64>,
    /// `exp`, in Unix seconds: published until its last signature has expired. `None`: no end.
    published_until: Option<u64>,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    EcdsaP256(EcdsaKeyPair),
}

impl std::str::FromStr for SigningAlgorithm {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        [Self::Ed25519, Self::EcdsaP256]
            .into_iter()
            .find(|algorithm| algorithm.as_str() == text)
            .ok_or(KeyError::Algorithm)
    }
}

impl SigningKey {
    /// Generates a key. Without `kid` it gets its thumbprint (RFC 7638).
    ///
    /// # Errors
    /// [`KeyError::Kid`], or [`KeyError::Random`] when the system gives no random bytes.
    pub fn generate(algorithm: SigningAlgorithm, kid: Option<&str>) -> Result<Self, KeyError> {
        let pair = match algorithm {
            SigningAlgorithm::Ed25519 => Ed25519KeyPair::generate().map(Pair::Ed25519),
            SigningAlgorithm::EcdsaP256 => {
                EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map(Pair::EcdsaP256)
            }
        };
        Self::new(pair.map_err(|_| KeyError::Random)?, kid)
    }

    /// Reads a key file: a private JWK when it starts with `{`, else PEM.
    ///
    /// # Errors
    /// [`KeyError`], which never repeats what the file says.
    pub fn parse(text: &str, kid: Option<&str>) -> Result<Self, KeyError> {
        if text.trim_start().starts_with('{') { Self::from_jwk(text, kid) } else { Self::from_pem(text, kid) }
    }

    /// Reads a private JWK (RFC 7517, RFC 8037). `kid` overrides the one inside.
    ///
    /// # Errors
    /// [`KeyError`]: among others when the halves do not belong together, or when `adcp_use` is
    /// neither `request-signing` nor `webhook-signing`.
    pub fn from_jwk(text: &str, kid: Option<&str>) -> Result<Self, KeyError> {
        let jwk: PrivateJwk = serde_json::from_str(text).map_err(|_| KeyError::Jwk("is no private JWK"))?;
        let purpose = match jwk.adcp_use.as_deref() {
            None => ACCEPTED_PURPOSES[0],
            Some(purpose) => parse_purpose(purpose)?,
        };
        let d = Zeroizing::new(coordinate(jwk.d.expose_secret())?);
        let x = coordinate(&jwk.x)?;
        let mismatch = |_| KeyError::Jwk("has halves that do not belong together");
        let pair = match (jwk.kty.as_str(), jwk.crv.as_str(), &jwk.y) {
            ("OKP", "Ed25519", None) => {
                Pair::Ed25519(Ed25519KeyPair::from_seed_and_public_key(&d[..], &x).map_err(mismatch)?)
            }
            ("EC", "P-256", Some(y)) => {
                let point = [&[UNCOMPRESSED], &x[..], &coordinate(y)?[..]].concat();
                let pair = EcdsaKeyPair::from_private_key_and_public_key(
                    &ECDSA_P256_SHA256_FIXED_SIGNING,
                    &d[..],
                    &point,
                );
                Pair::EcdsaP256(pair.map_err(mismatch)?)
            }
            _ => return Err(KeyError::Algorithm),
        };
        let key = Self::new(pair, kid.or(jwk.kid.as_deref()))?;
        Ok(Self { purpose, signs_from: jwk.nbf, published_until: jwk.exp, ..key })
    }

    /// Reads a PEM private key: PKCS#8 as OpenSSL writes it, or SEC1 (`EC PRIVATE KEY`).
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_pem(text: &str, kid: Option<&str>) -> Result<Self, KeyError> {
        let der = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| KeyError::Pem)?;
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = match &der {
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                Ed25519KeyPair::from_pkcs8(der)
                    .map(Pair::Ed25519)
                    .or_else(|_| EcdsaKeyPair::from_pkcs8(algorithm, der).map(Pair::EcdsaP256))
            }
            PrivateKeyDer::Sec1(der) => {
                EcdsaKeyPair::from_private_key_der(algorithm, der.secret_sec1_der()).map(Pair::EcdsaP256)
            }
            _ => return Err(KeyError::Algorithm),
        };
        Self::new(pair.map_err(|_| KeyError::Algorithm)?, kid)
    }

    fn new(pair: Pair, kid: Option<&str>) -> Result<Self, KeyError> {
        let mut key = Self {
            kid: String::new(),
            pair,
            purpose: ACCEPTED_PURPOSES[0],
            signs_from: None,
            published_until: None,
        };
        key.kid = kid.map_or_else(|| key.thumbprint(), str::to_owned);
        if key.kid.is_empty() || !key.kid.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
            return Err(KeyError::Kid);
        }
        Ok(key)
    }

    /// The `kid`: printable ASCII.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The algorithm, which the key decides.
    #[must_use]
    pub fn algorithm(&self) -> SigningAlgorithm {
        match self.pair {
            Pair::Ed25519(_) => SigningAlgorithm::Ed25519,
            Pair::EcdsaP256(_) => SigningAlgorithm::EcdsaP256,
        }
    }

    /// Signs `message`: 64 bytes, `r‖s` for ECDSA (RFC 9421 §3.3.4); `None` when the library fails.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let signature = match &self.pair {
            Pair::Ed25519(pair) => pair.try_sign(message),
            Pair::EcdsaP256(pair) => pair.sign(&SystemRandom::new(), message),
        };
        signature.ok().map(|signature| signature.as_ref().to_vec())
    }

    /// The same key, published for another purpose: `webhook-signing`, which AdCP 3.2 has
    /// deprecated, for buyers whose SDK (the TypeScript one up to 6.11) accepts nothing else.
    ///
    /// # Errors
    /// [`KeyError::Jwk`] for a purpose that is not for webhooks.
    pub fn for_purpose(self, purpose: &str) -> Result<Self, KeyError> {
        Ok(Self { purpose: parse_purpose(purpose)?, ..self })
    }

    /// The public half as it is published. Unless its file says otherwise the purpose is
    /// `request-signing`, which AdCP 3.2 wants for webhooks too.
    #[must_use]
    pub fn to_public_jwk(&self) -> Value {
        let mut jwk = self.required_members();
        jwk["kid"] = self.kid.as_str().into();
        jwk["alg"] = match self.algorithm() {
            SigningAlgorithm::Ed25519 => "EdDSA".into(),
            SigningAlgorithm::EcdsaP256 => "ES256".into(),
        };
        jwk["use"] = "sig".into();
        jwk["key_ops"] = json!(["verify"]);
        jwk["adcp_use"] = self.purpose.into();
        jwk
    }

    /// The whole key as a JWK, for a file with mode 0600.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the library does not give out the private half.
    pub fn to_private_jwk(&self) -> Result<SecretString, KeyError> {
        let d = match &self.pair {
            Pair::Ed25519(pair) => {
                let seed = pair.seed().map_err(|_| KeyError::Random)?;
                let seed: Curve25519SeedBin<'_> = seed.as_be_bytes().map_err(|_| KeyError::Random)?;
                Zeroizing::new(URL_SAFE_NO_PAD.encode(seed.as_ref()))
            }
            Pair::EcdsaP256(pair) => {
                let private: EcPrivateKeyBin<'_> =
                    pair.private_key().as_be_bytes().map_err(|_| KeyError::Random)?;
                Zeroizing::new(URL_SAFE_NO_PAD.encode(private.as_ref()))
            }
        };
        let mut jwk = self.to_public_jwk();
        jwk["key_ops"] = json!(["sign"]);
        jwk["d"] = d.as_str().into();
        for (name, at) in [("nbf", self.signs_from), ("exp", self.published_until)] {
            if let Some(at) = at {
                jwk[name] = at.into();
            }
        }
        Ok(SecretString::from(format!("{jwk:#}\n")))
    }

    /// RFC 7638: the SHA-256 of the required members in alphabetical order.
    fn thumbprint(&self) -> String {
        URL_SAFE_NO_PAD
            .encode(digest::digest(&digest::SHA256, self.required_members().to_string().as_bytes()))
    }

    /// `kty`, `crv` and the public coordinates; `serde_json` keeps them in alphabetical order.
    fn required_members(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.pair {
            Pair::Ed25519(pair) => {
                json!({"crv": "Ed25519", "kty": "OKP", "x": encode(pair.public_key().as_ref())})
            }
            Pair::EcdsaP256(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(COORDINATE_BYTES);
                json!({"crv": "P-256", "kty": "EC", "x": encode(x), "y": encode(y)})
            }
        }
    }
}

/// By what is published and when; the private half goes with the public one.
impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        let times = |key: &Self| (key.signs_from, key.published_until);
        self.to_public_jwk() == other.to_public_jwk() && times(self) == times(other)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({} {})", self.algorithm().as_str(), self.kid)
    }
}

#[derive(serde::Deserialize)]
struct PrivateJwk {
    kty: String,
    crv: String,
    kid: Option<String>,
    adcp_use: Option<String>,
    x: String,
    y: Option<String>,
    d: SecretString,
    nbf: Option<u64>,
    exp: Option<u64>,
}

fn parse_purpose(text: &str) -> Result<&'static str, KeyError> {
    let known = ACCEPTED_PURPOSES.into_iter().find(|purpose| *purpose == text);
    known.ok_or(KeyError::Jwk("has an adcp_use that is not for webhooks"))
}

/// A coordinate or scalar: 32 bytes, in the one spelling that base64url has for them.
pub(super) fn coordinate(text: &str) -> Result<[u8; COORDINATE_BYTES], KeyError> {
    let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).unwrap_or_default());
    bytes
        .as_slice()
        .try_into()
        .map_err(|_| KeyError::Jwk("has a member that is not 32 bytes of unpadded base64url"))
}

/// Why a key cannot be used. Never repeats what the file says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A JWK that cannot be used.
    #[error("the JWK {0}")]
    Jwk(&'static str),
    /// Neither JSON nor a PEM block with a private key.
    #[error("the key is neither a JWK nor a PEM private key")]
    Pem,
    /// A key of another algorithm.
    #[error("the key is neither Ed25519 nor P-256")]
    Algorithm,
    /// A `kid` that cannot stand in a signature's parameters (RFC 8941 §3.3.3).
    #[error("the kid must be printable ASCII and not empty")]
    Kid,
    /// A JWKS must not have one `kid` twice.
    #[error("two keys have the kid `{0}`")]
    DuplicateKid(String),
    /// The random source failed, or the library keeps the key to itself.
    #[error("the cryptographic library failed")]
    Random,
}

/// `adcp_use` values under which a key may sign webhooks; the first is the one to publish.
pub(super) const ACCEPTED_PURPOSES: [&str; 2] = ["request-signing", "webhook-signing"];

/// Bytes of an Ed25519 key and of a P-256 coordinate.
pub(super) const COORDINATE_BYTES: usize = 32;

/// First byte of an uncompressed point (SEC 1 §2.3.3).
pub(super) const UNCOMPRESSED: u8 = 0x04;

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [SigningAlgorithm; 2] = [SigningAlgorithm::Ed25519, SigningAlgorithm::EcdsaP256];

    #[test]
    fn a_generated_key_reads_back_from_its_file() {
        for algorithm in BOTH {
            let key = SigningKey::generate(algorithm, None).unwrap();
            let file = key.to_private_jwk().unwrap();
            let read = SigningKey::parse(file.expose_secret(), None).unwrap();
            assert_eq!(read.to_public_jwk(), key.to_public_jwk());
            assert_eq!(read.kid(), key.thumbprint());
            assert_eq!(read.algorithm(), algorithm);
        }
    }

    #[test]
    fn pem_files_as_openssl_writes_them_are_read() {
        for (pem, algorithm, x) in [
            (ED25519_PKCS8, SigningAlgorithm::Ed25519, ED25519_X),
            (P256_PKCS8, SigningAlgorithm::EcdsaP256, P256_X),
            (P256_SEC1, SigningAlgorithm::EcdsaP256, P256_X),
        ] {
            let key = SigningKey::parse(pem, Some("k")).unwrap();
            assert_eq!((key.algorithm(), key.kid()), (algorithm, "k"));
            assert_eq!(key.to_public_jwk()["x"], x);
        }
        assert_eq!(SigningKey::parse("nonsense", None).unwrap_err(), KeyError::Pem);
    }

    #[test]
    fn the_thumbprint_is_that_of_rfc_8037() {
        let jwk = r#"{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
            "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        assert_eq!(
            SigningKey::parse(jwk, None).unwrap().kid(),
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
        );
    }

    #[test]
    fn what_is_published_has_no_private_half() {
        let keys = BOTH.map(|algorithm| SigningKey::generate(algorithm, None).unwrap());
        let secrets = keys.iter().map(|key| key.to_private_jwk().unwrap()).collect::<Vec<_>>();
        let ring = KeyRing::new(keys.into()).unwrap();
        let (jwks, debug) = (ring.jwks(std::time::UNIX_EPOCH), format!("{ring:?}"));
        assert_eq!(jwks["keys"].as_array().unwrap().len(), 2);
        for (published, secret) in jwks["keys"].as_array().unwrap().iter().zip(secrets) {
            assert_eq!(
                (&published["use"], &published["adcp_use"]),
                (&"sig".into(), &"request-signing".into())
            );
            assert_eq!(published["key_ops"], json!(["verify"]));
            let d = serde_json::from_str::<Value>(secret.expose_secret()).unwrap()["d"]
                .as_str()
                .unwrap()
                .to_owned();
            assert!(!jwks.to_string().contains(&d) && !debug.contains(&d));
        }
    }

    #[test]
    fn keys_that_would_not_verify_are_refused() {
        let key = SigningKey::generate(SigningAlgorithm::Ed25519, Some("a")).unwrap();
        let other = SigningKey::generate(SigningAlgorithm::Ed25519, Some("a")).unwrap();
        let mut jwk: Value = serde_json::from_str(key.to_private_jwk().unwrap().expose_secret()).unwrap();
        for purpose in ACCEPTED_PURPOSES {
            jwk["adcp_use"] = purpose.into();
            let read = SigningKey::parse(&jwk.to_string(), None).unwrap();
            assert_eq!(read.to_public_jwk()["adcp_use"], purpose, "published as its file says");
        }
        jwk["adcp_use"] = "response-signing".into();
        assert!(matches!(SigningKey::parse(&jwk.to_string(), None), Err(KeyError::Jwk(_))));
        jwk["adcp_use"] = "request-signing".into();
        jwk["x"] = other.to_public_jwk()["x"].clone();
        assert!(matches!(SigningKey::parse(&jwk.to_string(), None), Err(KeyError::Jwk(_))));
        assert_eq!(SigningKey::generate(SigningAlgorithm::Ed25519, Some("ключ")).unwrap_err(), KeyError::Kid);
        assert_eq!(KeyRing::new(vec![key, other]).unwrap_err(), KeyError::DuplicateKid("a".into()));
    }

    const ED25519_PKCS8: &str = include_str!("../../../tests/vectors/ed25519-pkcs8.pem");
    const ED25519_X: &str = "Lb8swz-77QdWjDmywnCF2XUdtHzD3yADZ-5OEw1xkCU";
    const P256_PKCS8: &str = include_str!("../../../tests/vectors/p256-pkcs8.pem");
    const P256_SEC1: &str = include_str!("../../../tests/vectors/p256-sec1.pem");
    const P256_X: &str = "yBWyq_-qNkhVrZxDGWhdf4ZPBgwxnq-Upi_ygNXEqk0";
}
