//! What a buyer registered for one task: where to ring, how to prove it, what to echo.
//!
//! [`Registration::parse`] takes the `push_notification_config` of the buyer's request as it
//! came and refuses everything that could only fail later (AdCP `push-notification-config.json`
//! and the Python SDK's outbox rules). The SQL function `taskbell.register_webhook` refuses the
//! same, and one table of cases in the tests holds both to it.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::{Status, Target};

/// A buyer's callback for one task, fixed when the task is issued.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Where the webhook goes.
    pub url: CallbackUrl,
    /// Echoed byte for byte in the webhook.
    pub operation_id: OperationId,
    /// Echoed in the body; a correlator, not a credential, but never logged.
    pub token: Option<SecretString>,
    /// Legacy authentication; `None` means an RFC 9421 signature.
    pub authentication: Option<Authentication>,
    /// The key set that signs, where the seller has one for each of its tenants; `None` means
    /// the default one. The seller's choice, not the buyer's; never beside legacy authentication.
    pub signing_scope: Option<SigningScope>,
    /// The open states that the buyer hears of too, beside the end of the task; none by default.
    pub states: Vec<Status>,
}

/// A legacy way of proving the sender, when the buyer asked for one.
#[derive(Debug, Clone)]
pub enum Authentication {
    /// `Authorization: Bearer …`.
    Bearer(SecretString),
    /// `X-ADCP-Signature`, keyed with the UTF-8 text of the secret.
    HmacSha256(SecretString),
}

/// Which URL schemes a registration may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UrlSchemes {
    /// `https` alone.
    #[default]
    HttpsOnly,
    /// `http` too: for development, where the buyer is a process on the same machine.
    AllowHttp,
}

/// An absolute callback URL, kept as the buyer wrote it.
#[derive(Clone, PartialEq, Eq)]
pub struct CallbackUrl {
    text: String,
    target: Target,
}

/// The buyer's own correlation id: `^[A-Za-z0-9_.:-]{1,255}$`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationId(String);

impl Registration {
    /// Parses a `push_notification_config`.
    ///
    /// # Errors
    /// [`RegistrationError`], which names the member at fault and never repeats its value.
    pub fn parse(config: &Value, schemes: UrlSchemes) -> Result<Self, RegistrationError> {
        let Value::Object(members) = config else {
            return Err(RegistrationError::new("push_notification_config", "must be a JSON object"));
        };
        let url = match members.get("url") {
            Some(Value::String(url)) => CallbackUrl::parse(url, schemes)?,
            Some(_) => return Err(RegistrationError::new("url", "must be a string")),
            None => return Err(RegistrationError::new("url", "is missing")),
        };
        let operation_id = match members.get("operation_id") {
            Some(Value::String(id)) => OperationId::parse(id)?,
            Some(Value::Null) | None => {
                return Err(RegistrationError::new("operation_id", "is missing: the webhook must echo it"));
            }
            Some(_) => return Err(RegistrationError::new("operation_id", "must be a string")),
        };
        let token = match members.get("token") {
            None | Some(Value::Null) => None,
            Some(Value::String(token)) if (16..=4096).contains(&token.chars().count()) => {
                Some(SecretString::from(token.as_str()))
            }
            Some(Value::String(_)) => {
                return Err(RegistrationError::new("token", "must have 16 to 4096 characters"));
            }
            Some(_) => return Err(RegistrationError::new("token", "must be a string")),
        };
        let authentication = match members.get("authentication") {
            None | Some(Value::Null) => None,
            Some(value) => Some(Authentication::parse(value)?),
        };
        Ok(Self { url, operation_id, token, authentication, signing_scope: None, states: Vec::new() })
    }

    /// The same, signed by the key set of one tenant.
    ///
    /// # Errors
    /// [`RegistrationError`] on `signing_scope` when the buyer chose legacy authentication.
    pub fn with_signing_scope(self, scope: SigningScope) -> Result<Self, RegistrationError> {
        if self.authentication.is_some() {
            let problem = "goes with RFC 9421 signatures, not with legacy authentication";
            return Err(RegistrationError::new("signing_scope", problem));
        }
        Ok(Self { signing_scope: Some(scope), ..self })
    }

    /// The same, with webhooks for these open states too.
    ///
    /// # Errors
    /// [`RegistrationError`] on `states` for a state that ends the task: it is always told.
    pub fn with_states(self, states: Vec<Status>) -> Result<Self, RegistrationError> {
        if states.iter().any(|status| status.is_terminal()) {
            let problem = "may have submitted, working, input-required and auth-required";
            return Err(RegistrationError::new("states", problem));
        }
        Ok(Self { states, ..self })
    }

    /// The registration as the JSON that `taskbell.register_webhook` takes. Secrets included:
    /// it goes to the database and nowhere else.
    #[must_use]
    pub fn to_config(&self) -> Value {
        let mut config = self.to_config_without_secrets();
        if let Some(token) = &self.token {
            config["token"] = token.expose_secret().into();
        }
        if let Some(authentication) = &self.authentication {
            config["authentication"]["credentials"] = authentication.secret().expose_secret().into();
        }
        config
    }

    /// The same without token and credentials, for a writer that hands them over sealed.
    #[must_use]
    pub fn to_config_without_secrets(&self) -> Value {
        let mut config = serde_json::json!({
            "url": self.url.as_str(),
            "operation_id": self.operation_id.as_str(),
        });
        if let Some(authentication) = &self.authentication {
            config["authentication"] = serde_json::json!({ "schemes": [authentication.scheme()] });
        }
        config
    }
}

impl Authentication {
    /// The scheme's name on the wire (AdCP `auth-scheme.json`).
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Bearer(_) => "Bearer",
            Self::HmacSha256(_) => "HMAC-SHA256",
        }
    }

    /// The credentials.
    #[must_use]
    pub fn secret(&self) -> &SecretString {
        match self {
            Self::Bearer(secret) | Self::HmacSha256(secret) => secret,
        }
    }

    fn parse(value: &Value) -> Result<Self, RegistrationError> {
        let refuse = |field, problem| Err(RegistrationError::new(field, problem));
        let Value::Object(members) = value else {
            return refuse("authentication", "must be a JSON object");
        };
        if members.keys().any(|name| name != "schemes" && name != "credentials") {
            return refuse("authentication", "may have only the members schemes and credentials");
        }
        let credentials = match members.get("credentials") {
            Some(Value::String(text)) => text.as_str(),
            _ => return refuse("authentication.credentials", "must be a string"),
        };
        if credentials.chars().count() < 32 {
            return refuse("authentication.credentials", "must have at least 32 characters");
        }
        if credentials.chars().any(|c| c.is_ascii_control()) {
            return refuse("authentication.credentials", "must not have control characters");
        }
        let secret = SecretString::from(credentials);
        match members.get("schemes").and_then(Value::as_array).map(Vec::as_slice) {
            Some([Value::String(scheme)]) => match scheme.as_str() {
                "Bearer" => Ok(Self::Bearer(secret)),
                "HMAC-SHA256" if is_one_character(credentials) => {
                    refuse("authentication.credentials", "must not be one character over and over")
                }
                "HMAC-SHA256" => Ok(Self::HmacSha256(secret)),
                _ => refuse("authentication.schemes", "must be [\"Bearer\"] or [\"HMAC-SHA256\"]"),
            },
            _ => refuse("authentication.schemes", "must be an array of exactly one scheme"),
        }
    }
}

impl CallbackUrl {
    /// Longest accepted URL, in characters (AdCP Python SDK, task webhook outbox).
    pub const MAX_CHARS: usize = 2048;

    /// Parses an absolute URL with a host and without credentials.
    ///
    /// # Errors
    /// [`RegistrationError`] on `url`.
    pub fn parse(text: &str, schemes: UrlSchemes) -> Result<Self, RegistrationError> {
        let refuse = |problem| Err(RegistrationError::new("url", problem));
        if text.chars().count() > Self::MAX_CHARS {
            return refuse("is longer than 2048 characters");
        }
        if text.chars().any(|c| c.is_ascii_control() || c == ' ' || c == '\\') {
            return refuse("has a control character, a space or a backslash");
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return refuse("must be absolute: https://host/path");
        };
        match (scheme.to_ascii_lowercase().as_str(), schemes) {
            ("https", _) | ("http", UrlSchemes::AllowHttp) => {}
            _ => return refuse("must be https"),
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return refuse("must not carry a user name or password");
        }
        match Target::parse(text) {
            Ok(target) => Ok(Self { text: text.to_owned(), target }),
            Err(_) => refuse("has no host that can be called"),
        }
    }

    /// What is signed and sent for it.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The URL, query included: a secret as soon as it is shown to anybody.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Names one of the seller's key sets: 1 to 255 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SigningScope(String);

impl SigningScope {
    /// Parses a name.
    ///
    /// # Errors
    /// [`RegistrationError`] on `signing_scope`.
    pub fn parse(text: &str) -> Result<Self, RegistrationError> {
        if (1..=255).contains(&text.len()) && !text.bytes().any(|byte| byte.is_ascii_control()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(RegistrationError::new("signing_scope", "must have 1 to 255 bytes and no control characters"))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CallbackUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.text.find(['?', '#']).unwrap_or(self.text.len());
        write!(f, "CallbackUrl({})", &self.text[..end])
    }
}

/// A secret that meets the length and is no secret (AdCP security, secret entropy).
fn is_one_character(secret: &str) -> bool {
    let mut characters = secret.chars();
    characters.next().is_some_and(|first| characters.all(|other| other == first))
}

impl OperationId {
    /// Parses an operation id.
    ///
    /// # Errors
    /// [`RegistrationError`] on `operation_id`.
    pub fn parse(text: &str) -> Result<Self, RegistrationError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.:-".contains(&b);
        if (1..=255).contains(&text.len()) && text.bytes().all(legal) {
            Ok(Self(text.to_owned()))
        } else {
            Err(RegistrationError::new("operation_id", "must be 1 to 255 characters of A-Z a-z 0-9 _ . : -"))
        }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a `push_notification_config` is refused. Names the member, never its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("push_notification_config: {field} {problem}")]
pub struct RegistrationError {
    /// The member at fault, as a dotted path.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: &'static str,
}

impl RegistrationError {
    fn new(field: &'static str, problem: &'static str) -> Self {
        Self { field, problem }
    }
}
