//! The span of each attempt, sent to an OpenTelemetry collector: OTLP over HTTP, protobuf.
//!
//! A layer beside the one that writes log lines reads the worker's `attempt ended` events, which
//! carry the trace and span ids that the receiver got; so the worker knows nothing of this, and a
//! span and its log line say the same. An exporter sends them in batches. Nothing waits for it:
//! when the collector is away or slow, spans are dropped and said to be.

mod layer;
mod export;

use tokio::sync::mpsc;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterFn, LevelFilter};
use tracing_subscriber::registry::LookupSpan;
use url::Url;

pub use export::Exporter;
use layer::Spans;

/// A layer that hands spans to an exporter which sends them to this address.
#[must_use]
pub fn start<S>(endpoint: Url) -> (impl Layer<S>, Exporter)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let (ended, to_send) = mpsc::channel(QUEUE);
    // A filter of its own: the level of log lines decides nothing here.
    let worker = FilterFn::new(|event| event.target().starts_with(WORKER));
    let spans = Spans::new(ended).with_filter(worker.with_max_level_hint(LevelFilter::INFO));
    (spans, Exporter::start(endpoint, to_send))
}

const WORKER: &str = "taskbell::worker";

/// Spans that wait to be sent: a few seconds of a busy daemon.
const QUEUE: usize = 8192;
