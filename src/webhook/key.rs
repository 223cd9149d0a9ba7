//! Signing keys: read from JWK or PEM, published as a JWKS.

use aws_lc_rs::encoding::AsBigEndian;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

/// The algorithms of the AdCP webhook profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// `ed25519` (RFC 9421 §3.3.6).
    Ed25519,
    /// `ecdsa-p256-sha256` (RFC 9421 §3.3.4).
    EcdsaP256Sha256,
}

impl Algorithm {
    /// The `alg` parameter of a signature.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
        }
    }
}

/// A private key and its id.
pub struct SigningKey {
    kid: String,
    pair: Pair,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

/// The keys of one sender: the first signs, all are published. Keep an old key behind a new one
/// until the last signature that it made has expired.
#[derive(Debug)]
pub struct KeyRing {
    keys: Vec<SigningKey>,
}

impl SigningKey {
    /// Reads a private JWK, or a PEM file (PKCS#8, or SEC1 for P-256) whose key id is then the
    /// RFC 7638 thumbprint of the public key.
    ///
    /// # Errors
    /// [`KeyError`], which never repeats any of the material.
    pub fn parse(text: &SecretString) -> Result<Self, KeyError> {
        let text = text.expose_secret().trim();
        if text.starts_with('{') { Self::from_jwk(text) } else { Self::from_pem(text) }
    }

    /// A new Ed25519 key as a private JWK, and its public half.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the system has no randomness.
    pub fn generate(kid: &str) -> Result<(SecretString, Value), KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Random)?;
        let seed = pair.seed().map_err(|_| KeyError::Random)?;
        let seed = seed.as_be_bytes().map_err(|_| KeyError::Random)?;
        let key = Self { kid: kid.to_owned(), pair: Pair::Ed25519(pair) };
        let public = key.public_jwk();
        let mut private = public.clone();
        private["d"] = URL_SAFE_NO_PAD.encode(seed.as_ref()).into();
        private["key_ops"] = json!(["sign"]);
        Ok((SecretString::from(private.to_string()), public))
    }

    /// The key id.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// What it signs with.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self.pair {
            Pair::Ed25519(_) => Algorithm::Ed25519,
            Pair::P256(_) => Algorithm::EcdsaP256Sha256,
        }
    }

    /// The public half, as the JWKS carries it. Its purpose is `request-signing`: AdCP
    /// publishes webhook keys so, and receivers tell the uses apart by the signature's tag.
    #[must_use]
    pub fn public_jwk(&self) -> Value {
        let mut jwk = self.public_members();
        jwk["kid"] = self.kid.clone().into();
        jwk["use"] = "sig".into();
        jwk["key_ops"] = json!(["verify"]);
        jwk["adcp_use"] = "request-signing".into();
        jwk
    }

    /// Signs bytes. Ed25519 is deterministic, ECDSA is not.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the system has no randomness.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.pair {
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::P256(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message).map_err(|_| KeyError::Random)?;
                Ok(signature.as_ref().to_vec())
            }
        }
    }

    fn public_members(&self) -> Value {
        match &self.pair {
            Pair::Ed25519(pair) => json!({
                "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA",
                "x": URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()),
            }),
            Pair::P256(pair) => {
                // An uncompressed point: 0x04, x, y.
                let point = pair.public_key().as_ref();
                json!({
                    "kty": "EC", "crv": "P-256", "alg": "ES256",
                    "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..65]),
                })
            }
        }
    }

    fn from_jwk(text: &str) -> Result<Self, KeyError> {
        #[derive(Deserialize)]
        struct Jwk {
            kid: Option<String>,
            kty: String,
            crv: String,
            x: String,
            y: Option<String>,
            d: Option<SecretString>,
            adcp_use: Option<String>,
        }
        let jwk: Jwk = serde_json::from_str(text).map_err(|_| KeyError::NotAKey)?;
        let kid = jwk.kid.filter(|kid| !kid.is_empty()).ok_or(KeyError::Member("kid"))?;
        if !kid.bytes().all(|b| (0x20..=0x7e).contains(&b)) {
            return Err(KeyError::Member("kid"));
        }
        if jwk.adcp_use.is_some_and(|purpose| purpose != "request-signing" && purpose != "webhook-signing") {
            return Err(KeyError::Member("adcp_use"));
        }
        let decode = |member, text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyError::Member(member));
        let d = jwk.d.ok_or(KeyError::Public)?;
        let (d, x) = (decode("d", d.expose_secret())?, decode("x", &jwk.x)?);
        let pair = match (jwk.kty.as_str(), jwk.crv.as_str()) {
            ("OKP", "Ed25519") => Pair::Ed25519(
                Ed25519KeyPair::from_seed_and_public_key(&d, &x).map_err(|_| KeyError::Mismatch)?,
            ),
            ("EC", "P-256") => {
                let y = decode("y", jwk.y.as_deref().ok_or(KeyError::Member("y"))?)?;
                let point: Vec<u8> = [&[4], x.as_slice(), y.as_slice()].concat();
                Pair::P256(
                    EcdsaKeyPair::from_private_key_and_public_key(
                        &ECDSA_P256_SHA256_FIXED_SIGNING,
                        &d,
                        &point,
                    )
                    .map_err(|_| KeyError::Mismatch)?,
                )
            }
            _ => return Err(KeyError::Algorithm),
        };
        Ok(Self { kid, pair })
    }

    fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| KeyError::NotAKey)?;
        let der = der.secret_der();
        let pair = Ed25519KeyPair::from_pkcs8(der)
            .map(Pair::Ed25519)
            .or_else(|_| {
                EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map(Pair::P256)
            })
            .or_else(|_| EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map(Pair::P256))
            .map_err(|_| KeyError::Algorithm)?;
        let mut key = Self { kid: String::new(), pair };
        key.kid = key.thumbprint();
        Ok(key)
    }

    /// RFC 7638: SHA-256 over the required members in alphabetical order.
    fn thumbprint(&self) -> String {
        let members = self.public_members();
        let text = match self.pair {
            Pair::Ed25519(_) => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":{}}}"#, members["x"]),
            Pair::P256(_) => {
                format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, members["x"], members["y"])
            }
        };
        URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()))
    }
}

impl KeyRing {
    /// A ring of keys.
    ///
    /// # Errors
    /// [`KeyError::Duplicate`] when two have the same id.
    pub fn new(keys: Vec<SigningKey>) -> Result<Self, KeyError> {
        for (n, key) in keys.iter().enumerate() {
            if keys[..n].iter().any(|other| other.kid == key.kid) {
                return Err(KeyError::Duplicate { kid: key.kid.clone() });
            }
        }
        Ok(Self { keys })
    }

    /// The key that signs, if there is one.
    #[must_use]
    pub fn signer(&self) -> Option<&SigningKey> {
        self.keys.first()
    }

    /// The JWKS document: public members only.
    #[must_use]
    pub fn jwks(&self) -> Value {
        json!({ "keys": self.keys.iter().map(SigningKey::public_jwk).collect::<Vec<_>>() })
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm())
            .finish_non_exhaustive()
    }
}

/// Why a key cannot be used. Never repeats any of its material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Neither JWK nor PEM.
    #[error("not a private key: give a JWK (JSON) or a PEM file")]
    NotAKey,
    /// A JWK without `d`.
    #[error("this is a public key: the private one has a member `d`")]
    Public,
    /// A member of the JWK is missing or malformed.
    #[error("the JWK's member `{0}` is missing or malformed")]
    Member(&'static str),
    /// The halves do not belong together.
    #[error("the private and the public half of the key do not belong together")]
    Mismatch,
    /// Neither Ed25519 nor P-256.
    #[error("the key is neither Ed25519 nor P-256, the only ones that AdCP webhooks use")]
    Algorithm,
    /// Two keys with one id.
    #[error("two keys have the id `{kid}`")]
    Duplicate {
        /// The id.
        kid: String,
    },
    /// No randomness.
    #[error("the system has no randomness")]
    Random,
}
