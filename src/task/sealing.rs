//! Seals the secrets of a registration: AES-256-GCM, bound to the task that they belong to.
//!
//! Token and credentials become one ciphertext. Whatever decides where they would be sent is
//! authenticated with them: account, task, type, URL, operation id and scheme. A row that was
//! changed behind our back, or copied to another task, does not open, so a secret reaches
//! nobody but the buyer who registered it.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// What a registration must keep secret.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// The token that the webhook echoes.
    pub token: Option<SecretString>,
    /// The credentials of a legacy scheme.
    pub credentials: Option<SecretString>,
}

/// What the secrets are bound to.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Binding<'a> {
    /// The owner of the task, where its table has one.
    pub account: Option<&'a str>,
    /// The task.
    pub task_id: &'a str,
    /// Its type.
    pub task_type: &'a str,
    /// The callback URL, as it was written.
    pub url: &'a str,
    /// The buyer's correlation id.
    pub operation_id: &'a str,
    /// The legacy scheme, if one was chosen.
    pub scheme: Option<&'a str>,
}

/// Sealed secrets, as they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Which key opens it.
    pub key_id: String,
    /// 12 random bytes.
    pub nonce: [u8; 12],
    /// The ciphertext with its tag of 16 bytes.
    pub ciphertext: Vec<u8>,
}

/// A sealing key with its id.
///
/// Nonces are random, so one key is good for 2³² registrations (NIST SP 800-38D §8.3).
pub struct SealingKey {
    id: String,
    key: RandomizedNonceKey,
}

/// The configured keys. The first one seals; each opens what it sealed.
#[derive(Debug, Default)]
pub struct SealingKeys(Vec<SealingKey>);

impl Secrets {
    /// Whether there is nothing to hide.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.token.is_none() && self.credentials.is_none()
    }
}

impl Binding<'_> {
    /// A JSON array of texts and nulls: no value can run into the next.
    fn aad(&self) -> String {
        let Self { account, task_id, task_type, url, operation_id, scheme } = *self;
        serde_json::json!([VERSION, account, task_id, task_type, url, operation_id, scheme]).to_string()
    }
}

impl SealingKey {
    /// A new random key as the JWK for its file (RFC 7518 §6.4). Without `kid` it gets a random one.
    ///
    /// # Errors
    /// [`SealingKeyError::Random`], [`SealingKeyError::Kid`].
    pub fn generate(kid: Option<&str>) -> Result<SecretString, SealingKeyError> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        rand::fill(bytes.as_mut()).map_err(|_| SealingKeyError::Random)?;
        let random = format!("seal-{}", uuid::Uuid::new_v4().simple());
        let kid = kid.unwrap_or(&random);
        check_kid(kid)?;
        let k = Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_ref()));
        let jwk = serde_json::json!({"kty": "oct", "kid": kid, "alg": ALGORITHM, "k": k.as_str()});
        Ok(SecretString::from(format!("{jwk:#}\n")))
    }

    /// Reads a JWK with 32 bytes in `k` and its id in `kid`.
    ///
    /// # Errors
    /// [`SealingKeyError`], which never repeats what the file says.
    pub fn parse(text: &str) -> Result<Self, SealingKeyError> {
        #[derive(Deserialize)]
        struct Jwk {
            kty: String,
            kid: Option<String>,
            alg: Option<String>,
            k: SecretString,
        }
        let jwk: Jwk = serde_json::from_str(text).map_err(|_| SealingKeyError::Jwk)?;
        if jwk.kty != "oct" || jwk.alg.is_some_and(|alg| alg != ALGORITHM) {
            return Err(SealingKeyError::Jwk);
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(jwk.k.expose_secret()).unwrap_or_default());
        if bytes.len() != KEY_BYTES {
            return Err(SealingKeyError::Length);
        }
        let id = jwk.kid.ok_or(SealingKeyError::Kid)?;
        check_kid(&id)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| SealingKeyError::Random)?;
        Ok(Self { id, key })
    }

    /// The id that sealed rows carry.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl SealingKeys {
    /// The keys of one installation; without any, secrets stay as their writers left them.
    ///
    /// # Errors
    /// [`SealingKeyError::Duplicate`].
    pub fn new(keys: Vec<SealingKey>) -> Result<Self, SealingKeyError> {
        let mut ids = std::collections::HashSet::new();
        match keys.iter().find(|key| !ids.insert(key.id())) {
            Some(key) => Err(SealingKeyError::Duplicate(key.id.clone())),
            None => Ok(Self(keys)),
        }
    }

    /// The id of the key that seals.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        self.0.first().map(SealingKey::id)
    }

    /// Whether the key with this id is one of them.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id() == id)
    }

    /// Seals under the first key.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(&self, secrets: &Secrets, binding: &Binding<'_>) -> Result<Sealed, SealError> {
        let key = self.0.first().ok_or(SealError::NoKey)?;
        let plain = Plain {
            token: secrets.token.as_ref().map(ExposeSecret::expose_secret),
            credentials: secrets.credentials.as_ref().map(ExposeSecret::expose_secret),
        };
        // Room for every character escaped, so that no grown buffer leaves a copy behind.
        let room = 64 + 6 * (plain.token.map_or(0, str::len) + plain.credentials.map_or(0, str::len));
        let mut text = Vec::with_capacity(room);
        serde_json::to_writer(&mut text, &plain).map_err(|_| SealError::Failed)?;
        // In place: the plaintext is overwritten.
        let nonce = key.key.seal_in_place_append_tag(Aad::from(binding.aad()), &mut text);
        let nonce = *nonce.map_err(|_| SealError::Failed)?.as_ref();
        Ok(Sealed { key_id: key.id.clone(), nonce, ciphertext: text })
    }

    /// Opens what one of the keys sealed.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, sealed: &Sealed, binding: &Binding<'_>) -> Result<Secrets, OpenError> {
        let key = self.0.iter().find(|key| key.id == sealed.key_id).ok_or(OpenError::NoKey)?;
        let mut text = Zeroizing::new(sealed.ciphertext.clone());
        let nonce = Nonce::from(&sealed.nonce);
        let opened = key.key.open_in_place(nonce, Aad::from(binding.aad()), &mut text[..]);
        let opened: Opened = serde_json::from_slice(opened.map_err(|_| OpenError::Refused)?)
            .map_err(|_| OpenError::Refused)?;
        Ok(Secrets { token: opened.token, credentials: opened.credentials })
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({})", self.id)
    }
}

#[derive(Serialize)]
struct Plain<'a> {
    token: Option<&'a str>,
    credentials: Option<&'a str>,
}

#[derive(Deserialize)]
struct Opened {
    token: Option<SecretString>,
    credentials: Option<SecretString>,
}

fn check_kid(kid: &str) -> Result<(), SealingKeyError> {
    let legal = (1..=255).contains(&kid.len()) && kid.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    if legal { Ok(()) } else { Err(SealingKeyError::Kid) }
}

/// Why a sealing key cannot be used. Never repeats what its file says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealingKeyError {
    /// Not a JWK of this kind.
    #[error("the sealing key is no JWK with kty oct and alg A256GCM")]
    Jwk,
    /// Not 256 bits.
    #[error("the sealing key must have 32 bytes in k, as unpadded base64url")]
    Length,
    /// No usable id.
    #[error("the sealing key must have a kid of 1 to 255 printable ASCII characters without spaces")]
    Kid,
    /// One id for two keys.
    #[error("two sealing keys have the kid `{0}`")]
    Duplicate(String),
    /// The cryptographic library failed.
    #[error("the cryptographic library failed")]
    Random,
}

/// Why nothing was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No key is configured.
    #[error("no sealing key is configured")]
    NoKey,
    /// The cryptographic library failed.
    #[error("the cryptographic library failed")]
    Failed,
}

/// Why sealed secrets stay sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The key that sealed them is not configured here: ours to repair.
    #[error("the key that sealed them is not configured")]
    NoKey,
    /// They were not sealed by this key, or for another row: nobody can repair it.
    #[error("they do not belong to this row, or were altered")]
    Refused,
}

/// First member of what is authenticated.
const VERSION: &str = "taskbell-registration-v1";
/// AES with 256 bits in Galois/Counter Mode (RFC 7518 §5.3).
const ALGORITHM: &str = "A256GCM";
const KEY_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kid: &str) -> SealingKey {
        SealingKey::parse(SealingKey::generate(Some(kid)).unwrap().expose_secret()).unwrap()
    }

    fn secrets() -> Secrets {
        Secrets {
            token: Some("tok\"en \u{fc}\u{1}0123456789".into()),
            credentials: Some("c".repeat(32).into()),
        }
    }

    const HERE: Binding<'_> = Binding {
        account: Some("acct"),
        task_id: "task_1",
        task_type: "create_media_buy",
        url: "https://buyer.example/h",
        operation_id: "op",
        scheme: Some("Bearer"),
    };

    #[test]
    fn what_was_sealed_opens_for_the_same_row_only() {
        let keys = SealingKeys::new(vec![key("a")]).unwrap();
        let sealed = keys.seal(&secrets(), &HERE).unwrap();
        let opened = keys.open(&sealed, &HERE).unwrap();
        let expose = |secret: &Option<SecretString>| secret.as_ref().unwrap().expose_secret().to_owned();
        assert_eq!(expose(&opened.token), expose(&secrets().token));
        assert_eq!(expose(&opened.credentials), expose(&secrets().credentials));
        for elsewhere in [
            Binding { account: Some("other"), ..HERE },
            Binding { account: None, ..HERE },
            Binding { task_id: "task_2", ..HERE },
            Binding { task_type: "update_media_buy", ..HERE },
            Binding { url: "https://evil.example/h", ..HERE },
            Binding { operation_id: "op2", ..HERE },
            Binding { scheme: Some("HMAC-SHA256"), ..HERE },
            Binding { scheme: None, ..HERE },
        ] {
            assert_eq!(keys.open(&sealed, &elsewhere).unwrap_err(), OpenError::Refused, "{elsewhere:?}");
        }
    }

    #[test]
    fn a_ciphertext_never_repeats_and_never_shows_what_it_hides() {
        let keys = SealingKeys::new(vec![key("a")]).unwrap();
        let (one, two) = (keys.seal(&secrets(), &HERE).unwrap(), keys.seal(&secrets(), &HERE).unwrap());
        assert_ne!(one.nonce, two.nonce);
        assert_ne!(one.ciphertext, two.ciphertext);
        assert!(!one.ciphertext.windows(4).any(|window| window == b"cccc"));
        let mut flipped = one.clone();
        flipped.ciphertext[3] ^= 1;
        assert_eq!(keys.open(&flipped, &HERE).unwrap_err(), OpenError::Refused);
        let cut = Sealed { ciphertext: vec![1, 2, 3], ..one };
        assert_eq!(keys.open(&cut, &HERE).unwrap_err(), OpenError::Refused);
    }

    #[test]
    fn a_new_first_key_seals_and_the_old_one_still_opens() {
        let old = SealingKey::generate(Some("old")).unwrap();
        let old = || SealingKey::parse(old.expose_secret()).unwrap();
        let sealed = SealingKeys::new(vec![old()]).unwrap().seal(&secrets(), &HERE).unwrap();
        let both = SealingKeys::new(vec![key("new"), old()]).unwrap();
        assert!(both.open(&sealed, &HERE).is_ok());
        assert_eq!(both.seal(&secrets(), &HERE).unwrap().key_id, "new");
        let new_only = SealingKeys::new(vec![key("new")]).unwrap();
        assert_eq!(new_only.open(&sealed, &HERE).unwrap_err(), OpenError::NoKey);
        assert!(matches!(SealingKeys::new(vec![old(), old()]), Err(SealingKeyError::Duplicate(_))));
    }

    #[test]
    fn key_files_that_cannot_be_used_are_refused_without_their_contents() {
        let file = SealingKey::generate(Some("k")).unwrap();
        let k = serde_json::from_str::<serde_json::Value>(file.expose_secret()).unwrap()["k"].to_string();
        for (text, error) in [
            ("nonsense".to_owned(), SealingKeyError::Jwk),
            (r#"{"kty":"OKP","k":"AA"}"#.to_owned(), SealingKeyError::Jwk),
            (r#"{"kty":"oct","kid":"k","k":"AA"}"#.to_owned(), SealingKeyError::Length),
            (format!(r#"{{"kty":"oct","k":{k}}}"#), SealingKeyError::Kid),
            (format!(r#"{{"kty":"oct","kid":"a b","k":{k}}}"#), SealingKeyError::Kid),
            (format!(r#"{{"kty":"oct","kid":"k","alg":"HS256","k":{k}}}"#), SealingKeyError::Jwk),
        ] {
            let refused = SealingKey::parse(&text).unwrap_err();
            assert_eq!(refused, error);
            assert!(!refused.to_string().contains(k.trim_matches('"')));
        }
        assert_eq!(format!("{:?}", SealingKey::parse(file.expose_secret()).unwrap()), "SealingKey(k)");
    }
}
