//! Reads a verified body strictly: what two parsers could read differently is no webhook.

use secrecy::SecretString;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::json::{self, Fault};
use super::super::{IdempotencyKey, MAX_BODY_BYTES, SignatureError};
use crate::task::{OperationId, Status};

/// A webhook's envelope (AdCP `mcp-webhook-payload.json`). Members that are not named here are
/// ignored, as the schema allows.
#[derive(Debug)]
pub struct Payload {
    /// Tells repetitions of one delivery apart from new ones.
    pub idempotency_key: IdempotencyKey,
    /// Identity of the event across re-emissions.
    pub notification_id: Option<String>,
    /// What the buyer registered.
    pub operation_id: OperationId,
    /// The seller's task.
    pub task_id: String,
    /// The AdCP operation.
    pub task_type: String,
    /// The protocol of the operation.
    pub protocol: Option<String>,
    /// Where the task stands; `None` for `unknown`.
    pub status: Option<Status>,
    /// When the delivery was first made, as it was written.
    pub timestamp: String,
    /// What the buyer registered, to be compared in constant time.
    pub token: Option<SecretString>,
    /// A line for people.
    pub message: Option<String>,
    /// The task's own document, byte for byte.
    pub result: Option<Box<RawValue>>,
    /// The request's context, byte for byte.
    pub context: Option<Box<RawValue>>,
}

impl Payload {
    /// Reads a body.
    ///
    /// # Errors
    /// [`PayloadError`]; [`PayloadError::code`] is what to answer.
    pub fn parse(body: &[u8]) -> Result<Self, PayloadError> {
        if body.len() > MAX_BODY_BYTES {
            return Err(PayloadError::TooLarge);
        }
        let text = std::str::from_utf8(body).map_err(|_| PayloadError::NotJson)?;
        let whole: &RawValue = serde_json::from_str(text).map_err(|_| PayloadError::NotJson)?;
        json::copy_compact(whole.get(), MAX_DEPTH, &mut Vec::with_capacity(body.len())).map_err(|fault| {
            match fault {
                Fault::DuplicateKey => PayloadError::DuplicateKey,
                Fault::TooDeep => PayloadError::TooDeep,
                Fault::Key => PayloadError::NotJson,
            }
        })?;
        let members: Members<'_> = serde_json::from_str(text).map_err(|_| PayloadError::NotAnEnvelope)?;
        members.check()
    }
}

#[derive(Deserialize)]
struct Members<'a> {
    idempotency_key: Option<String>,
    notification_id: Option<String>,
    operation_id: Option<String>,
    task_id: Option<String>,
    task_type: Option<String>,
    protocol: Option<String>,
    status: Option<String>,
    timestamp: Option<String>,
    token: Option<SecretString>,
    message: Option<String>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    context: Option<&'a RawValue>,
}

impl Members<'_> {
    fn check(self) -> Result<Payload, PayloadError> {
        let required = |member: Option<String>, name| member.ok_or(PayloadError::Missing(name));
        let status = required(self.status, "status")?;
        Ok(Payload {
            idempotency_key: IdempotencyKey::parse(required(self.idempotency_key, "idempotency_key")?)
                .map_err(|_| PayloadError::Invalid("idempotency_key"))?,
            operation_id: OperationId::parse(&required(self.operation_id, "operation_id")?)
                .map_err(|_| PayloadError::Invalid("operation_id"))?,
            task_id: required(self.task_id, "task_id")?,
            task_type: required(self.task_type, "task_type")?,
            timestamp: required(self.timestamp, "timestamp")?,
            status: match status.parse() {
                Ok(status) => Some(status),
                Err(_) if status == "unknown" => None,
                Err(_) => return Err(PayloadError::Invalid("status")),
            },
            notification_id: self.notification_id,
            protocol: self.protocol,
            token: self.token,
            message: self.message,
            result: self.result.map(ToOwned::to_owned),
            context: self.context.map(ToOwned::to_owned),
        })
    }
}

/// Why a body is no webhook. Repeats nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Over [`MAX_BODY_BYTES`].
    #[error("the body is larger than {MAX_BODY_BYTES} bytes")]
    TooLarge,
    /// Not one JSON document in UTF-8.
    #[error("the body is not JSON")]
    NotJson,
    /// One object has the same key twice, at any depth: parsers disagree on which counts.
    #[error("the body has an object with the same key twice")]
    DuplicateKey,
    /// Nested deeper than receivers read.
    #[error("the body is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Not an object, or a member of another type.
    #[error("the body is no webhook envelope")]
    NotAnEnvelope,
    /// A member that every webhook has.
    #[error("the envelope has no {0}")]
    Missing(&'static str),
    /// A member outside its bounds.
    #[error("the envelope's {0} is out of bounds")]
    Invalid(&'static str),
}

impl PayloadError {
    /// What to answer: the signature was good, the body is not.
    #[must_use]
    pub fn code(self) -> SignatureError {
        SignatureError::BodyMalformed
    }
}

/// As the AdCP Python SDK.
const MAX_DEPTH: usize = 100;

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Deserialize)]
    struct Vectors {
        accepted: Vec<Case>,
        refused: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        body: Value,
        result: Option<Value>,
        error: Option<String>,
    }

    #[test]
    fn every_envelope_of_the_vectors_is_read_or_refused_as_it_says() {
        let vectors: Vectors =
            serde_json::from_str(include_str!("../../../tests/vectors/webhook-payloads.json")).unwrap();
        assert!(vectors.accepted.len() >= 6 && vectors.refused.len() >= 3);
        for case in vectors.accepted {
            let payload = Payload::parse(case.body.to_string().as_bytes()).unwrap();
            let result = payload.result.map(|result| serde_json::from_str::<Value>(result.get()).unwrap());
            assert_eq!(result, case.result, "{}", case.name);
            assert_eq!(payload.operation_id.as_str(), case.body["operation_id"], "{}", case.name);
        }
        for case in vectors.refused {
            let refused = Payload::parse(case.body.to_string().as_bytes()).unwrap_err();
            assert_eq!(refused.to_string(), case.error.unwrap(), "{}", case.name);
        }
    }

    fn envelope(with: Value) -> Value {
        let mut envelope = json!({
            "idempotency_key": "whk_0123456789abcdef", "operation_id": "op", "task_id": "t",
            "task_type": "create_media_buy", "status": "completed", "timestamp": "2026-04-18T14:00:00Z",
        });
        envelope.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        envelope
    }

    #[test]
    fn what_parsers_could_read_differently_is_refused() {
        let good = envelope(json!({ "token": "0123456789abcdef", "result": { "a": [1] }, "context": {} }));
        let payload = Payload::parse(good.to_string().as_bytes()).unwrap();
        assert_eq!(payload.token.unwrap().expose_secret(), "0123456789abcdef");
        assert_eq!(payload.result.unwrap().get(), r#"{"a":[1]}"#);
        let text = good.to_string();
        let (open, rest) = text.split_at(1);
        for (body, error) in [
            (format!("{open}\"task_id\":\"other\",{rest}"), PayloadError::DuplicateKey),
            (text.replace("[1]", r#"[{"b":1,"\u0062":2}]"#), PayloadError::DuplicateKey),
            (text.replace("[1]", &format!("{}{}", "[".repeat(99), "]".repeat(99))), PayloadError::TooDeep),
            (format!("\u{feff}{text}"), PayloadError::NotJson),
            (format!("{text} {text}"), PayloadError::NotJson),
            (text.replace("[1]", "[NaN]"), PayloadError::NotJson),
            ("[]".to_owned(), PayloadError::NotAnEnvelope),
            (envelope(json!({ "task_id": 7 })).to_string(), PayloadError::NotAnEnvelope),
            (envelope(json!({ "operation_id": "a b" })).to_string(), PayloadError::Invalid("operation_id")),
            (envelope(json!({ "timestamp": null })).to_string(), PayloadError::Missing("timestamp")),
        ] {
            assert_eq!(Payload::parse(body.as_bytes()).unwrap_err(), error, "{body}");
        }
        assert_eq!(Payload::parse(b"\xff{}").unwrap_err(), PayloadError::NotJson);
        assert_eq!(Payload::parse(&vec![b' '; MAX_BODY_BYTES + 1]).unwrap_err(), PayloadError::TooLarge);
        assert!(Payload::parse(envelope(json!({ "status": "unknown" })).to_string().as_bytes()).is_ok());
    }
}
