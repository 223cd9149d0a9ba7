//! Renders the AdCP webhook body: one flat JSON object, the same bytes whenever it is rendered.
//!
//! Member order, bounds and what is left out follow AdCP `mcp-webhook-payload.json` and the
//! Python SDK. The task's own documents are copied, never re-serialized.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde_json::value::RawValue;

use super::json::{self, Fault};
use super::{IdempotencyKey, Unsendable, is_identifier_byte};
use crate::task::{OperationId, Status, TaskId, TaskType, protocol_of};

/// Everything that a webhook says of a task.
#[derive(Debug, Clone)]
pub struct Envelope<'a> {
    /// The delivery key.
    pub idempotency_key: &'a IdempotencyKey,
    /// The buyer's correlation id, echoed.
    pub operation_id: &'a OperationId,
    /// The task.
    pub task_id: &'a TaskId,
    /// The operation that it answers.
    pub task_type: &'a TaskType,
    /// Where it stands.
    pub status: Status,
    /// Since when; frozen, so that every attempt says the same.
    pub timestamp: SystemTime,
    /// The registered token, echoed; `None` when none was registered.
    pub token: Option<&'a SecretString>,
    /// The stored result of a completed task, the stored error of a failed one, the progress of
    /// an open one. `None` and JSON `null` leave the member out.
    pub result: Option<&'a RawValue>,
    /// The `context` object of the buyer's request, echoed on every webhook (AdCP context and
    /// sessions). `None` and JSON `null` leave the member out.
    pub context: Option<&'a RawValue>,
}

impl Envelope<'_> {
    /// Renders the body; task types are those of the AdCP enum.
    ///
    /// # Errors
    /// [`Unsendable`], which no retry can cure.
    pub fn render(&self) -> Result<Bytes, Unsendable> {
        self.render_for(TaskType::is_known)
    }

    /// Renders the body where `is_task_type` says which task types receivers accept: those of
    /// the enum and the ones that an operator has added.
    ///
    /// # Errors
    /// [`Unsendable`], which no retry can cure.
    pub fn render_for(&self, is_task_type: impl Fn(&TaskType) -> bool) -> Result<Bytes, Unsendable> {
        if !is_task_type(self.task_type) {
            return Err(Unsendable::TaskType);
        }
        if self.task_id.as_str().len() > TaskId::MAX_BYTES
            || !self.task_id.as_str().bytes().all(is_identifier_byte)
        {
            return Err(Unsendable::TaskId);
        }
        if let Some(token) = self.token
            && !(16..=4096).contains(&token.expose_secret().chars().count())
        {
            return Err(Unsendable::Token);
        }
        let documents = [self.result, self.context].into_iter().flatten();
        let mut body =
            Body(Vec::with_capacity(MEMBERS + documents.map(|value| value.get().len()).sum::<usize>()));
        body.0.push(b'{');
        body.text("idempotency_key", self.idempotency_key.as_str());
        if let Some(id) = self.notification_id() {
            body.text("notification_id", &id);
        }
        body.text("operation_id", self.operation_id.as_str());
        body.text("task_id", self.task_id.as_str());
        body.text("task_type", self.task_type.as_str());
        if let Some(protocol) = protocol_of(self.task_type.as_str()) {
            body.text("protocol", protocol);
        }
        body.text("status", self.status.as_str());
        body.text("timestamp", &rfc3339(self.timestamp)?);
        if let Some(token) = self.token {
            body.text("token", token.expose_secret());
        }
        match (self.status, self.result.filter(|value| value.get() != "null")) {
            (_, None) => {}
            (Status::Failed, Some(error)) if !is_failure_document(error) => body.failure(error)?,
            (_, Some(document)) => body.document("result", document)?,
        }
        if let Some(context) = self.context.filter(|value| value.get() != "null") {
            if !context.get().starts_with('{') {
                return Err(Unsendable::Document { member: "context", problem: "must be a JSON object" });
            }
            body.document("context", context)?;
        }
        body.close()
    }

    /// The identity of the event across re-emissions, which the Python SDK derives from the task
    /// id: for the end of a task only, and for every type but `media_buy_delivery`.
    fn notification_id(&self) -> Option<String> {
        let has_one = self.status.is_terminal() && self.task_type.as_str() != "media_buy_delivery";
        has_one.then(|| format!("{}.terminal", self.task_id))
    }
}

/// The body so far: `{` and the members, each with its comma.
struct Body(Vec<u8>);

impl Body {
    fn name(&mut self, name: &'static str) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn text(&mut self, name: &'static str, value: &str) {
        self.name(name);
        serde_json::to_writer(&mut self.0, value).unwrap_or_else(|_| unreachable!("a Vec takes every text"));
    }

    fn document(&mut self, name: &'static str, value: &RawValue) -> Result<(), Unsendable> {
        self.name(name);
        self.copy(name, value)
    }

    /// A failed task's result is the document that polling returns, because a buyer compares the
    /// two (AdCP async identity and convergence).
    fn failure(&mut self, error: &RawValue) -> Result<(), Unsendable> {
        self.name("result");
        self.0.extend_from_slice(br#"{"status":"failed","adcp_error":"#);
        self.copy("result", error)?;
        self.0.extend_from_slice(br#","errors":["#);
        self.copy("result", error)?;
        self.0.extend_from_slice(b"]}");
        Ok(())
    }

    fn copy(&mut self, member: &'static str, value: &RawValue) -> Result<(), Unsendable> {
        let bytes = self.0.len() + value.get().len();
        if bytes > MAX_DOCUMENT_BYTES {
            return Err(Unsendable::TooLarge { bytes });
        }
        json::copy_compact(value.get(), json::MAX_DEPTH, &mut self.0).map_err(|fault| match fault {
            Fault::DuplicateKey => Unsendable::DuplicateKey { member },
            Fault::TooDeep => Unsendable::Document { member, problem: "is nested too deeply" },
            Fault::Key => Unsendable::Document { member, problem: "has a key that is no Unicode text" },
        })
    }

    fn close(mut self) -> Result<Bytes, Unsendable> {
        self.0.push(b'}');
        if self.0.len() > MAX_BODY_BYTES {
            return Err(Unsendable::TooLarge { bytes: self.0.len() });
        }
        Ok(Bytes::from(self.0))
    }
}

/// Whether a stored error already is a response document: an object with `adcp_error`, or with
/// an `errors` array.
fn is_failure_document(error: &RawValue) -> bool {
    #[derive(serde::Deserialize)]
    struct Document<'a> {
        #[serde(borrow)]
        adcp_error: Option<&'a RawValue>,
        #[serde(borrow)]
        errors: Option<&'a RawValue>,
    }
    let starts = |value: Option<&RawValue>, with| value.is_some_and(|value| value.get().starts_with(with));
    error.get().starts_with('{')
        && serde_json::from_str::<Document<'_>>(error.get())
            .is_ok_and(|document| starts(document.adcp_error, '{') || starts(document.errors, '['))
}

/// RFC 3339 in UTC, with `Z` and six fractional digits.
fn rfc3339(moment: SystemTime) -> Result<String, Unsendable> {
    let micros = match moment.duration_since(UNIX_EPOCH) {
        Ok(after) => i128::try_from(after.as_micros()),
        Err(before) => i128::try_from(before.duration().as_micros()).map(|micros| -micros),
    }
    .map_err(|_| Unsendable::Timestamp)?;
    let (seconds, micros) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years: leap days come last in such a year.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + i128::from(month <= 2);
    if !(1..=9999).contains(&year) {
        return Err(Unsendable::Timestamp);
    }
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    Ok(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"))
}

/// Largest body that is rendered: 10 MiB (AdCP Python SDK). Receivers are told to take 1 MB.
pub const MAX_BODY_BYTES: usize = 10 * 1024 * 1024;

/// What the members beside the documents take, as a rule.
const MEMBERS: usize = 512;
/// Largest stored text that is looked at: white space, which a body does not have, may double it.
const MAX_DOCUMENT_BYTES: usize = 2 * MAX_BODY_BYTES;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Case {
        task_type: &'static str,
        status: Status,
        token: Option<&'static str>,
        result: Option<String>,
        context: Option<&'static str>,
    }

    impl Default for Case {
        fn default() -> Self {
            Self {
                task_type: "create_media_buy",
                status: Status::Completed,
                token: None,
                result: None,
                context: None,
            }
        }
    }

    fn render(case: Case) -> Result<String, Unsendable> {
        let raw = |text: &str| serde_json::from_str::<Box<RawValue>>(text).unwrap();
        let result = case.result.as_deref().map(raw);
        let context = case.context.map(raw);
        let token = case.token.map(SecretString::from);
        let envelope = Envelope {
            idempotency_key: &IdempotencyKey::parse("whk_00000000-0000-4000-8000-0000000000aa").unwrap(),
            operation_id: &OperationId::parse("op_1").unwrap(),
            task_id: &TaskId::parse("task_2000000000000001").unwrap(),
            task_type: &TaskType::parse(case.task_type).unwrap(),
            status: case.status,
            timestamp: UNIX_EPOCH + Duration::from_micros(1_776_520_800_123_456),
            token: token.as_ref(),
            result: result.as_deref(),
            context: context.as_deref(),
        };
        envelope.render().map(|body| String::from_utf8(body.to_vec()).unwrap())
    }

    const HEAD: &str = concat!(
        r#"{"idempotency_key":"whk_00000000-0000-4000-8000-0000000000aa","#,
        r#""notification_id":"task_2000000000000001.terminal","operation_id":"op_1","#,
        r#""task_id":"task_2000000000000001","task_type":"create_media_buy","protocol":"media-buy","#,
    );

    fn check(case: Case, tail: &str) {
        assert_eq!(render(case).unwrap(), format!("{HEAD}{tail}"));
    }

    #[test]
    fn a_body_has_its_members_in_the_sdks_order() {
        check(
            Case {
                token: Some("tok_0123456789 \u{e9}\""),
                result: Some(r#"{ "n": 12345678901234567890123, "x": null }"#.into()),
                context: Some(r#"{"session": "s"}"#),
                ..Case::default()
            },
            concat!(
                r#""status":"completed","timestamp":"2026-04-18T14:00:00.123456Z","#,
                "\"token\":\"tok_0123456789 \u{e9}\\\"\",",
                r#""result":{"n":12345678901234567890123,"x":null},"context":{"session":"s"}}"#,
            ),
        );
    }

    #[test]
    fn what_is_absent_or_null_is_left_out() {
        let tail = r#""status":"completed","timestamp":"2026-04-18T14:00:00.123456Z"}"#;
        check(Case::default(), tail);
        check(Case { result: Some("null".into()), context: Some("null"), ..Case::default() }, tail);
        let quiet = render(Case { task_type: "media_buy_delivery", ..Case::default() }).unwrap();
        assert!(!quiet.contains("notification_id") && !quiet.contains("protocol"), "{quiet}");
    }

    #[test]
    fn a_failure_is_wrapped_once() {
        let head = r#""status":"failed","timestamp":"2026-04-18T14:00:00.123456Z","result":"#;
        let failed =
            |error: &str| Case { status: Status::Failed, result: Some(error.into()), ..Case::default() };
        let wrapped = r#"{"status":"failed","adcp_error":{"code":"X"},"errors":[{"code":"X"}]}}"#;
        check(failed(r#"{"code": "X"}"#), &format!("{head}{wrapped}"));
        for document in [
            r#"{"errors":[{"code":"X"}]}"#,
            r#"{"adcp_error":{"code":"X"}}"#,
            r#"{"status":"failed","errors":[]}"#,
        ] {
            check(failed(document), &format!("{head}{document}}}"));
        }
    }

    #[test]
    fn what_receivers_would_refuse_is_never_rendered() {
        let refused = |case| render(case).unwrap_err();
        assert_eq!(refused(Case { task_type: "make_coffee", ..Case::default() }), Unsendable::TaskType);
        assert_eq!(refused(Case { token: Some("short"), ..Case::default() }), Unsendable::Token);
        assert_eq!(
            refused(Case { result: Some(r#"{"a":[{"b":1,"b":2}]}"#.into()), ..Case::default() }),
            Unsendable::DuplicateKey { member: "result" }
        );
        assert!(matches!(
            refused(Case { context: Some("[]"), ..Case::default() }),
            Unsendable::Document { .. }
        ));
        let large = format!("\"{}\"", "x".repeat(MAX_BODY_BYTES));
        assert!(matches!(
            refused(Case { result: Some(large), ..Case::default() }),
            Unsendable::TooLarge { .. }
        ));
        let nothing_but_space = format!("{{{}}}", " ".repeat(MAX_BODY_BYTES + 1));
        assert!(render(Case { result: Some(nothing_but_space), ..Case::default() }).is_ok());
    }

    #[test]
    fn moments_are_written_as_rfc_3339() {
        for (seconds, micros, expected) in [
            (0, 0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000001Z"),
            (1_709_251_199, 999_999, "2024-02-29T23:59:59.999999Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000Z"),
            (253_402_300_799, 0, "9999-12-31T23:59:59.000000Z"),
        ] {
            let moment = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros);
            assert_eq!(rfc3339(moment).unwrap(), expected);
        }
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_micros(1)).unwrap(), "1969-12-31T23:59:59.999999Z");
        assert!(rfc3339(UNIX_EPOCH + Duration::from_secs(253_402_300_800)).is_err());
    }
}
