//! From the worker's events to spans.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Makes a span of every attempt that ends.
pub struct Spans {
    ended: mpsc::Sender<Span>,
}

impl Spans {
    pub(super) fn new(ended: mpsc::Sender<Span>) -> Self {
        Self { ended }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id).filter(|span| span.name() == "attempt") else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if fields.text("span_id").is_none() {
            return;
        }
        let span = context.event_span(event);
        if let Some(about) = span.as_ref().and_then(|span| span.extensions().get::<Fields>().cloned()) {
            fields.0.extend(about.0);
        }
        #[allow(clippy::disallowed_methods, reason = "the edge: when the event came")]
        let now = SystemTime::now();
        if let Some(span) = fields.into_span(now) {
            // A full queue means that the collector is away, and the exporter says so.
            let _ = self.ended.try_send(span);
        }
    }
}

/// The fields of an event or a span, in their order.
#[derive(Debug, Clone, Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(known, _)| *known == name)?;
        Some(self.0.remove(at).1)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).and_then(|(_, value)| match value {
            Value::StringValue(text) => Some(text.as_str()),
            _ => None,
        })
    }

    fn id(&mut self, name: &str) -> Option<Vec<u8>> {
        let text = self.take(name)?;
        let Value::StringValue(text) = text else { return None };
        (0..text.len() / 2).map(|at| u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()).collect()
    }

    /// The attempt that these fields tell of, which ended at `end`.
    fn into_span(mut self, end: SystemTime) -> Option<Span> {
        let (trace_id, span_id) = (self.id("trace_id")?, self.id("span_id")?);
        let Some(Value::IntValue(duration_ms)) = self.take("duration_ms") else { return None };
        let end = end.duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = end.saturating_sub(Duration::from_millis(u64::try_from(duration_ms).unwrap_or(0)));
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let status = match (self.text("verdict"), self.text("reason")) {
            (Some("acknowledge"), _) => Status::default(),
            (_, reason) => {
                Status { code: StatusCode::Error.into(), message: reason.unwrap_or_default().to_owned() }
            }
        };
        let mut attributes = vec![attribute("http.request.method", Value::StringValue("POST".to_owned()))];
        for (name, value) in self.0 {
            if let Some((_, known)) = NAMES.iter().find(|(own, _)| *own == name) {
                attributes.push(attribute(known, value));
            }
        }
        Some(Span {
            trace_id,
            span_id,
            name: "deliver webhook".to_owned(),
            kind: SpanKind::Client.into(),
            start_time_unix_nano: nanoseconds(start),
            end_time_unix_nano: nanoseconds(end),
            attributes,
            status: Some(status),
            flags: SAMPLED,
            ..Span::default()
        })
    }
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push((field.name(), Value::IntValue(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), Value::StringValue(value.to_owned())));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), Value::StringValue(format!("{value:?}"))));
    }
}

fn attribute(name: &str, value: Value) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// The worker's fields and what OpenTelemetry calls them: its conventions for HTTP, where it has
/// a name.
const NAMES: [(&str, &str); 9] = [
    ("status", "http.response.status_code"),
    ("server.address", "server.address"),
    ("reason", "error.type"),
    ("verdict", "taskbell.verdict"),
    ("source", "taskbell.source"),
    ("row.id", "taskbell.row.id"),
    ("task.id", "taskbell.task.id"),
    ("attempt", "taskbell.attempt"),
    ("legacy_authentication", "taskbell.legacy_authentication"),
];
/// W3C trace flags, in the lowest byte.
const SAMPLED: u32 = 1;
