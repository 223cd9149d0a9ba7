//! From spans to requests to a collector, in batches.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, redirect};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use url::Url;

/// Sends spans until it is told to finish.
pub struct Exporter {
    finish: CancellationToken,
    sending: JoinHandle<()>,
}

impl Exporter {
    pub(super) fn start(endpoint: Url, mut to_send: mpsc::Receiver<Span>) -> Self {
        let finish = CancellationToken::new();
        let finished = finish.clone();
        let sending = tokio::spawn(async move {
            let client = Client::builder().redirect(redirect::Policy::none()).timeout(PATIENCE).build();
            let mut collector = match client {
                Ok(client) => Collector { client, endpoint, reached: true },
                Err(error) => return tracing::error!(%error, "no spans are sent: no HTTP client"),
            };
            let mut spans = Vec::new();
            while finished.run_until_cancelled(fill(&mut spans, &mut to_send)).await == Some(true) {
                collector.send(std::mem::take(&mut spans)).await;
            }
            to_send.close();
            while !spans.is_empty() || to_send.recv_many(&mut spans, BATCH).await > 0 {
                collector.send(std::mem::take(&mut spans)).await;
            }
        });
        Self { finish, sending }
    }

    /// Sends what is left, unless that takes too long.
    pub async fn finish(self) {
        self.finish.cancel();
        let _ = timeout(LAST, self.sending).await;
    }
}

/// Waits for a span, and a little for more of them. Whether there was one. What has come when it
/// is dropped stands in `spans`.
async fn fill(spans: &mut Vec<Span>, to_send: &mut mpsc::Receiver<Span>) -> bool {
    if to_send.recv_many(spans, BATCH).await == 0 {
        return false;
    }
    let until = Instant::now() + LINGER;
    while spans.len() < BATCH {
        match timeout_at(until, to_send.recv_many(spans, BATCH - spans.len())).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => break,
        }
    }
    true
}

struct Collector {
    client: Client,
    endpoint: Url,
    /// Whether the last batch arrived: a change is worth a line, each failure is not.
    reached: bool,
}

impl Collector {
    async fn send(&mut self, spans: Vec<Span>) {
        let count = spans.len();
        let body = request(spans).encode_to_vec();
        let mut sent = self.post(body.clone()).await;
        if matches!(sent, Err(Failure::Passing(_))) {
            sleep(RETRY).await;
            sent = self.post(body).await;
        }
        match &sent {
            Ok(()) if !self.reached => tracing::info!("the collector takes spans again"),
            Err(Failure::Passing(why) | Failure::Refused(why)) if self.reached => {
                tracing::warn!(%why, spans = count, "the collector does not take spans: they are dropped until it does");
            }
            _ => {}
        }
        self.reached = sent.is_ok();
    }

    async fn post(&self, body: Vec<u8>) -> Result<(), Failure> {
        let request = self.client.post(self.endpoint.clone()).header(CONTENT_TYPE, "application/x-protobuf");
        let answer = request.body(body).send().await;
        let answer = answer.map_err(|error| Failure::Passing(error.without_url().to_string()))?;
        match answer.status().as_u16() {
            200..=299 => Ok(()),
            // OTLP/HTTP, "Retryable Response Codes".
            status @ (429 | 502 | 503 | 504) => Err(Failure::Passing(format!("it answered {status}"))),
            status => Err(Failure::Refused(format!("it answered {status}"))),
        }
    }
}

enum Failure {
    Passing(String),
    Refused(String),
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let text = |text: &str| Some(AnyValue { value: Some(Value::StringValue(text.to_owned())) });
    let named = |(key, value): (&str, &str)| KeyValue {
        key: key.to_owned(),
        value: text(value),
        ..KeyValue::default()
    };
    let resource = Resource {
        attributes: [("service.name", "taskbell"), ("service.version", VERSION)].map(named).to_vec(),
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: "taskbell".to_owned(),
        version: VERSION.to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    let resource_spans =
        vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Spans in one request.
const BATCH: usize = 512;
/// How long a batch waits for more spans.
const LINGER: Duration = Duration::from_secs(1);
/// For one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before the one repetition.
const RETRY: Duration = Duration::from_secs(1);
/// For what is left at the end.
const LAST: Duration = Duration::from_secs(3);
