//! Renders the body: a pure function of stored values, so every attempt has the same bytes.
//!
//! Compact UTF-8 JSON in the member order of the AdCP SDKs (AdCP `mcp-webhook-payload.json`).
//! The task's own documents are forwarded as the text that Postgres gave, never parsed and
//! written again: numbers keep their digits, and `jsonb` has no duplicate keys to pass on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{IdempotencyKey, Unsendable};
use crate::task::{Terminal, protocol_of};

/// The largest body that is sent, in bytes; what the AdCP Python SDK refuses to go beyond.
pub const MAX_BODY_BYTES: usize = 10 * 1024 * 1024;

/// The stored values that make one webhook.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// The delivery key.
    pub key: &'a IdempotencyKey,
    /// The buyer's own id, echoed.
    pub operation_id: &'a str,
    /// The task.
    pub task_id: &'a str,
    /// The AdCP operation.
    pub task_type: &'a str,
    /// How it ended.
    pub status: Terminal,
    /// When it ended; the body's `timestamp`.
    pub occurred_at: SystemTime,
    /// The buyer's token, echoed.
    pub token: Option<&'a str>,
    /// The stored result, or the stored error of a failed task.
    pub document: Option<&'a RawValue>,
    /// The creating request's `context`, echoed.
    pub context: Option<&'a RawValue>,
}

impl Envelope<'_> {
    /// The body.
    ///
    /// # Errors
    /// [`Unsendable`] when no valid webhook can be made: the row is a dead letter.
    pub fn render(&self) -> Result<Bytes, Unsendable> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.:-".contains(&b);
        if !(1..=246).contains(&self.task_id.len()) || !self.task_id.bytes().all(legal) {
            return Err(Unsendable::Member("task_id"));
        }
        if self.task_type.is_empty() {
            return Err(Unsendable::Member("task_type"));
        }
        if self.token.is_some_and(|token| !(16..=4096).contains(&token.chars().count())) {
            return Err(Unsendable::Member("token"));
        }
        let result = match (self.status, self.document) {
            (_, None) => None,
            (_, Some(document)) if document.get() == "null" => None,
            (Terminal::Completed, Some(document)) => Some(document.to_owned()),
            (Terminal::Failed, Some(error)) => Some(failure_document(error)?),
        };
        let body = serde_json::to_vec(&Wire {
            idempotency_key: self.key.as_str(),
            notification_id: format!("{}.terminal", self.task_id),
            operation_id: self.operation_id,
            task_id: self.task_id,
            task_type: self.task_type,
            protocol: protocol_of(self.task_type),
            status: self.status.as_str(),
            timestamp: rfc3339(self.occurred_at),
            token: self.token,
            result: result.as_deref(),
            context: self.context.filter(|context| context.get().starts_with('{')),
        })
        .map_err(|_| Unsendable::Member("result"))?;
        if body.len() > MAX_BODY_BYTES {
            return Err(Unsendable::TooLarge { bytes: body.len(), limit: MAX_BODY_BYTES });
        }
        Ok(body.into())
    }
}

#[derive(Serialize)]
struct Wire<'a> {
    idempotency_key: &'a str,
    notification_id: String,
    operation_id: &'a str,
    task_id: &'a str,
    task_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    status: &'static str,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a RawValue>,
}

/// A failed task's result is the document that polling returns, so that the buyer sees the same
/// on both channels, unless what is stored already is such a document.
fn failure_document(error: &RawValue) -> Result<Box<RawValue>, Unsendable> {
    #[derive(serde::Deserialize)]
    struct Document<'a> {
        status: Option<&'a str>,
        #[serde(borrow)]
        adcp_error: Option<&'a RawValue>,
        #[serde(borrow)]
        errors: Option<Vec<&'a RawValue>>,
    }
    let text = error.get();
    let is_document = serde_json::from_str::<Document<'_>>(text).is_ok_and(|document| {
        document.status == Some("failed") && (document.adcp_error.is_some() || document.errors.is_some())
    });
    let document = match is_document {
        true => text.to_owned(),
        false => format!(r#"{{"status":"failed","adcp_error":{text},"errors":[{text}]}}"#),
    };
    RawValue::from_string(document).map_err(|_| Unsendable::Member("error"))
}

/// RFC 3339 in UTC, with microseconds where there are any: Postgres' own resolution.
fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = match since.subsec_micros() {
        0 => String::new(),
        micros => format!(".{micros:06}"),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// The proleptic Gregorian date of a day counted from 1970-01-01, on years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    fn render(status: Terminal, document: Option<&str>, context: Option<&str>) -> String {
        let key = IdempotencyKey::parse("whk_00000000-0000-4000-8000-0000000000aa").unwrap();
        let (document, context) = (document.map(raw), context.map(raw));
        let body = Envelope {
            key: &key,
            operation_id: "op_1",
            task_id: "task_2",
            task_type: "create_media_buy",
            status,
            occurred_at: UNIX_EPOCH + Duration::from_micros(1_776_520_800_123_456),
            token: None,
            document: document.as_deref(),
            context: context.as_deref(),
        }
        .render()
        .unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[test]
    fn numbers_and_order_of_the_result_are_untouched() {
        let body = render(
            Terminal::Completed,
            Some(r#"{"b":1.50,"a":12345678901234567890123}"#),
            Some(r#"{"t":"é"}"#),
        );
        assert_eq!(
            body,
            concat!(
                r#"{"idempotency_key":"whk_00000000-0000-4000-8000-0000000000aa","notification_id":"task_2.terminal","#,
                r#""operation_id":"op_1","task_id":"task_2","task_type":"create_media_buy","protocol":"media-buy","#,
                r#""status":"completed","timestamp":"2026-04-18T14:00:00.123456Z","#,
                r#""result":{"b":1.50,"a":12345678901234567890123},"context":{"t":"é"}}"#,
            )
        );
    }

    #[test]
    fn a_failed_task_says_what_polling_says() {
        let error = r#"{"code":"REJECTED","message":"no"}"#;
        let wrapped = format!(r#""result":{{"status":"failed","adcp_error":{error},"errors":[{error}]}}}}"#);
        assert!(render(Terminal::Failed, Some(error), None).ends_with(&wrapped));
        let document = r#"{"status":"failed","errors":[]}"#;
        assert!(
            render(Terminal::Failed, Some(document), None).ends_with(&format!(r#""result":{document}}}"#))
        );
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
