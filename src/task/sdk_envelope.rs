//! The sealed forms of the AdCP Python SDK (9.2.0), byte for byte.
//!
//! Two things are sealed under one application key: the registration on an open task, and the
//! body of a webhook owed. Both are AES-256-GCM with the tag appended; what is authenticated is a
//! compact JSON array of the columns beside the ciphertext. There is no key id: of several keys
//! each is tried.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Authentication, Registration};

/// The application keys that the SDK's processes hold; the first one seals, each may open.
#[derive(Default)]
pub struct SdkKeys(Vec<LessSafeKey>);

/// A ciphertext with its nonce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SdkSealed {
    /// Ciphertext and tag.
    pub ciphertext: Vec<u8>,
    /// 12 random bytes.
    pub nonce: [u8; 12],
}

/// The columns of a row in the SDK's outbox that are authenticated with its body.
#[derive(Debug, Clone, Copy)]
pub struct SdkRow<'a> {
    /// The task's owner.
    pub account_id: &'a str,
    /// The task.
    pub task_id: &'a str,
    /// Its type.
    pub task_type: &'a str,
    /// `completed` or `failed`.
    pub terminal_status: &'a str,
    /// Where the webhook goes.
    pub url: &'a str,
    /// Echoed to the buyer.
    pub operation_id: &'a str,
    /// The delivery key.
    pub idempotency_key: &'a str,
    /// Whose key signs.
    pub signing_scope_id: Option<&'a str>,
}

/// What a row's ciphertext holds.
#[derive(Debug)]
pub struct SdkDelivery {
    /// The HTTP body, to be sent as it is.
    pub body: Vec<u8>,
    /// Legacy authentication; `None` means an RFC 9421 signature.
    pub authentication: Option<Authentication>,
}

impl SdkKeys {
    /// Reads key files: a JWK (`kty` `oct`), 32 raw bytes, or their base64 or hex.
    ///
    /// # Errors
    /// [`SdkKeyError`], which never repeats what a file says.
    pub fn parse<'a>(files: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, SdkKeyError> {
        let keys = files.into_iter().map(|file| {
            let bytes = key_bytes(file).ok_or(SdkKeyError)?;
            Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes[..]).map_err(|_| SdkKeyError)?))
        });
        Ok(Self(keys.collect::<Result<_, _>>()?))
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Seals a registration for the column `webhook_registration` of a task.
    ///
    /// # Errors
    /// [`SdkSealError`]: no key, or the cryptographic library failed.
    pub fn seal_registration(
        &self,
        registration: &Registration,
        account_id: &str,
        task_id: &str,
        task_type: &str,
    ) -> Result<SdkSealed, SdkSealError> {
        let authentication = registration.authentication.as_ref();
        let plain = RegistrationText {
            url: registration.url.as_str(),
            operation_id: registration.operation_id.as_str(),
            token: registration.token.as_ref().map(ExposeSecret::expose_secret),
            authentication: authentication.map(|authentication| AuthenticationText {
                scheme: authentication.scheme(),
                credentials: authentication.secret().expose_secret(),
            }),
            signing_scope_id: registration.signing_scope.as_ref().map(|scope| scope.as_str()),
        };
        let text = serde_json::to_vec(&plain).map_err(|_| SdkSealError)?;
        self.seal(text, &registration_aad(account_id, task_id, task_type), random_nonce()?)
    }

    /// Opens a row of the SDK's outbox.
    ///
    /// # Errors
    /// [`SdkOpenError`]: no key opens it, or what it holds is no delivery.
    pub fn open_delivery(
        &self,
        row: &SdkRow<'_>,
        ciphertext: &[u8],
        nonce: &[u8],
    ) -> Result<SdkDelivery, SdkOpenError> {
        let plain = self.open(ciphertext, &delivery_aad(row), nonce)?;
        let is_object = plain.trim_ascii_start().starts_with(b"{");
        let versioned = serde_json::from_slice::<Versioned>(&plain).ok().filter(|_| is_object);
        if versioned.and_then(|found| found.task_webhook_delivery_version).is_none() {
            return Ok(SdkDelivery { body: plain.to_vec(), authentication: None });
        }
        let wrapper: Wrapper = serde_json::from_slice(&plain).map_err(|_| SdkOpenError::Malformed)?;
        if wrapper.task_webhook_delivery_version != 1 {
            return Err(SdkOpenError::Malformed);
        }
        let body = STANDARD.decode(&wrapper.body).map_err(|_| SdkOpenError::Malformed)?;
        let secret = wrapper.authentication.credentials;
        let text = secret.expose_secret();
        if text.is_empty() || text.contains(['\r', '\n', '\0']) {
            return Err(SdkOpenError::Malformed);
        }
        let authentication = match wrapper.authentication.scheme.as_str() {
            "Bearer" => Authentication::Bearer(secret),
            "HMAC-SHA256" => Authentication::HmacSha256(secret),
            _ => return Err(SdkOpenError::Malformed),
        };
        Ok(SdkDelivery { body, authentication: Some(authentication) })
    }

    fn seal(&self, mut text: Vec<u8>, aad: &str, nonce: [u8; 12]) -> Result<SdkSealed, SdkSealError> {
        let key = self.0.first().ok_or(SdkSealError)?;
        key.seal_in_place_append_tag(Nonce::from(&nonce), Aad::from(aad), &mut text)
            .map_err(|_| SdkSealError)?;
        Ok(SdkSealed { ciphertext: text, nonce })
    }

    fn open(&self, ciphertext: &[u8], aad: &str, nonce: &[u8]) -> Result<Zeroizing<Vec<u8>>, SdkOpenError> {
        for key in &self.0 {
            let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SdkOpenError::Refused)?;
            let mut text = Zeroizing::new(ciphertext.to_vec());
            if let Ok(plain) = key.open_in_place(nonce, Aad::from(aad), &mut text[..]) {
                let length = plain.len();
                text.truncate(length);
                return Ok(text);
            }
        }
        Err(SdkOpenError::Refused)
    }
}

impl std::fmt::Debug for SdkKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SdkKeys({})", self.0.len())
    }
}

#[derive(Serialize)]
struct RegistrationText<'a> {
    url: &'a str,
    operation_id: &'a str,
    token: Option<&'a str>,
    authentication: Option<AuthenticationText<'a>>,
    signing_scope_id: Option<&'a str>,
}

#[derive(Serialize)]
struct AuthenticationText<'a> {
    scheme: &'a str,
    credentials: &'a str,
}

#[derive(Deserialize)]
struct Versioned {
    task_webhook_delivery_version: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Wrapper {
    task_webhook_delivery_version: u64,
    body: String,
    authentication: WrappedAuthentication,
}

#[derive(Deserialize)]
struct WrappedAuthentication {
    scheme: String,
    credentials: SecretString,
}

fn registration_aad(account_id: &str, task_id: &str, task_type: &str) -> String {
    serde_json::json!(["task-webhook-registration-v1", account_id, task_id, task_type]).to_string()
}

/// The eighth member only where there is a scope.
fn delivery_aad(row: &SdkRow<'_>) -> String {
    let SdkRow { account_id, task_id, task_type, terminal_status, url, operation_id, .. } = *row;
    let columns = [account_id, task_id, task_type, terminal_status, url, operation_id, row.idempotency_key];
    let columns: Vec<&str> = columns.into_iter().chain(row.signing_scope_id).collect();
    serde_json::json!(columns).to_string()
}

fn random_nonce() -> Result<[u8; 12], SdkSealError> {
    let mut nonce = [0; 12];
    rand::fill(&mut nonce).map_err(|_| SdkSealError)?;
    Ok(nonce)
}

fn key_bytes(file: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    #[derive(Deserialize)]
    struct Jwk {
        kty: String,
        k: SecretString,
    }
    let exact = |bytes: &[u8]| bytes.try_into().ok().map(Zeroizing::new);
    if let Some(raw) = exact(file) {
        return Some(raw);
    }
    let text = std::str::from_utf8(file).ok()?.trim();
    if text.starts_with('{') {
        let jwk: Jwk = serde_json::from_str(text).ok().filter(|jwk: &Jwk| jwk.kty == "oct")?;
        return exact(&Zeroizing::new(URL_SAFE_NO_PAD.decode(jwk.k.expose_secret()).ok()?));
    }
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let mut bytes = Zeroizing::new([0; 32]);
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        return Some(bytes);
    }
    let unpadded = text.trim_end_matches('=');
    let decoded = STANDARD.decode(text).or_else(|_| URL_SAFE_NO_PAD.decode(unpadded)).ok()?;
    exact(&Zeroizing::new(decoded))
}

/// A file that holds no AES-256 key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it holds no AES-256 key: a JWK with kty oct, 32 raw bytes, or their base64 or hex")]
pub struct SdkKeyError;

/// Nothing was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no key is configured, or the cryptographic library failed")]
pub struct SdkSealError;

/// Why a row stays sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SdkOpenError {
    /// No key opens it with its columns.
    #[error("no configured key opens it together with its columns")]
    Refused,
    /// It opens, and holds no delivery.
    #[error("what it holds is no delivery")]
    Malformed,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::UrlSchemes;
    use super::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/sdk-envelopes.json")).unwrap()
    }

    fn bytes(value: &Value) -> Vec<u8> {
        let text = value.as_str().unwrap().as_bytes();
        let digit = |at: usize| char::from(text[at]).to_digit(16).unwrap() as u8;
        (0..text.len() / 2).map(|n| digit(2 * n) * 16 + digit(2 * n + 1)).collect()
    }

    fn keys(case: &Value) -> SdkKeys {
        SdkKeys::parse([case["key_hex"].as_str().unwrap().as_bytes()]).unwrap()
    }

    fn text<'a>(case: &'a Value, name: &str) -> &'a str {
        case[name].as_str().unwrap()
    }

    #[test]
    fn registrations_are_sealed_as_the_sdk_seals_them() {
        let vectors = vectors();
        for case in vectors["registrations"].as_array().unwrap() {
            let opened = &case["opened"];
            let mut config = json!({ "url": opened["url"], "operation_id": opened["operation_id"], "token": opened["token"] });
            if !opened["authentication"].is_null() {
                config["authentication"] = json!({
                    "schemes": [opened["authentication"]["scheme"]],
                    "credentials": opened["authentication"]["credentials"],
                });
            }
            let mut registration = match Registration::parse(&config, UrlSchemes::HttpsOnly) {
                Ok(registration) => registration,
                // The SDK seals shorter secrets than the schema allows.
                Err(refused) => {
                    assert_eq!(case["refused"], refused.field, "{}", case["id"]);
                    continue;
                }
            };
            if let Some(scope) = opened["signing_scope_id"].as_str() {
                let scope = super::super::SigningScope::parse(scope).unwrap();
                registration = registration.with_signing_scope(scope).unwrap();
            }
            let (account, id, kind) =
                (text(case, "account_id"), text(case, "task_id"), text(case, "task_type"));
            let nonce = bytes(&case["nonce_hex"]);
            // The random nonce of a sealing is replaced by the vector's: open with one, compare the text.
            let sealed = keys(case).seal_registration(&registration, account, id, kind).unwrap();
            let aad = registration_aad(account, id, kind);
            let ours = keys(case).open(&sealed.ciphertext, &aad, &sealed.nonce).unwrap();
            let theirs = keys(case).open(&bytes(&case["webhook_registration_hex"]), &aad, &nonce).unwrap();
            assert_eq!(
                String::from_utf8(ours.to_vec()).unwrap(),
                String::from_utf8(theirs.to_vec()).unwrap(),
                "{}",
                case["id"]
            );
            let again = keys(case).seal(theirs.to_vec(), &aad, nonce.try_into().unwrap()).unwrap();
            assert_eq!(again.ciphertext, bytes(&case["webhook_registration_hex"]), "{}", case["id"]);
        }
    }

    fn row<'a>(columns: &'a Value) -> SdkRow<'a> {
        SdkRow {
            account_id: text(columns, "account_id"),
            task_id: text(columns, "task_id"),
            task_type: text(columns, "task_type"),
            terminal_status: text(columns, "terminal_status"),
            url: text(columns, "url"),
            operation_id: text(columns, "operation_id"),
            idempotency_key: text(columns, "idempotency_key"),
            signing_scope_id: columns["signing_scope_id"].as_str(),
        }
    }

    #[test]
    fn deliveries_of_the_sdk_open_and_only_with_their_own_columns() {
        let vectors = vectors();
        for case in vectors["deliveries"].as_array().unwrap() {
            let (columns, nonce) = (&case["columns"], bytes(&case["nonce_hex"]));
            let ciphertext = bytes(&case["encrypted_body_hex"]);
            let opened = keys(case).open_delivery(&row(columns), &ciphertext, &nonce).unwrap();
            assert_eq!(String::from_utf8(opened.body).unwrap(), text(case, "body_utf8"), "{}", case["id"]);
            let authentication = opened.authentication.map(|authentication| {
                json!({ "scheme": authentication.scheme(), "credentials": authentication.secret().expose_secret() })
            });
            assert_eq!(authentication.unwrap_or_default(), case["authentication"], "{}", case["id"]);
            for column in ["account_id", "task_id", "task_type", "url", "operation_id", "idempotency_key"] {
                let mut other = columns.clone();
                other[column] = format!("{}x", text(columns, column)).into();
                let refused = keys(case).open_delivery(&row(&other), &ciphertext, &nonce).unwrap_err();
                assert_eq!(refused, SdkOpenError::Refused, "{} {column}", case["id"]);
            }
            let other = SdkKeys::parse([&[7; 32][..]]).unwrap();
            assert!(other.open_delivery(&row(columns), &ciphertext, &nonce).is_err());
            let both = SdkKeys::parse([&[7; 32][..], text(case, "key_hex").as_bytes()]).unwrap();
            assert!(both.open_delivery(&row(columns), &ciphertext, &nonce).is_ok(), "each key is tried");
        }
    }

    #[test]
    fn a_wrapper_that_is_not_one_is_refused() {
        let keys = SdkKeys::parse([&[7; 32][..]]).unwrap();
        let columns = json!({
            "account_id": "a", "task_id": "t", "task_type": "x", "terminal_status": "failed", "url": "https://b.example/",
            "operation_id": "o", "idempotency_key": "k",
        });
        let open = |plain: &Value| {
            let sealed =
                keys.seal(plain.to_string().into_bytes(), &delivery_aad(&row(&columns)), [1; 12]).unwrap();
            keys.open_delivery(&row(&columns), &sealed.ciphertext, &sealed.nonce)
        };
        let wrapper = json!({
            "task_webhook_delivery_version": 1, "body": "e30=",
            "authentication": { "scheme": "Bearer", "credentials": "c" },
        });
        assert_eq!(open(&wrapper).unwrap().body, b"{}");
        for (member, value) in [
            ("task_webhook_delivery_version", json!(2)),
            ("task_webhook_delivery_version", json!("1")),
            ("body", json!("e30")),
            ("body", json!(7)),
            ("authentication", Value::Null),
            ("authentication", json!({ "scheme": "Basic", "credentials": "c" })),
            ("authentication", json!({ "scheme": "Bearer", "credentials": "" })),
            ("authentication", json!({ "scheme": "Bearer", "credentials": "a\nb" })),
        ] {
            let mut broken = wrapper.clone();
            broken[member] = value.clone();
            assert_eq!(open(&broken).unwrap_err(), SdkOpenError::Malformed, "{member} {value}");
        }
        assert!(open(&json!([1])).unwrap().authentication.is_none());
    }

    #[test]
    fn a_key_is_read_in_every_form_that_files_have() {
        let raw: Vec<u8> = (0..32).collect();
        let hex = raw.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let jwk = json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode(&raw) }).to_string();
        for file in [hex, STANDARD.encode(&raw), URL_SAFE_NO_PAD.encode(&raw) + "\n", jwk] {
            assert_eq!(key_bytes(file.as_bytes()).unwrap()[..], raw[..], "{file}");
        }
        assert_eq!(key_bytes(&raw).unwrap()[..], raw[..]);
        for file in ["", "short", &"g".repeat(64), "{\"kty\":\"RSA\",\"k\":\"AA\"}"] {
            assert!(SdkKeys::parse([file.as_bytes()]).is_err(), "{file}");
        }
    }
}
