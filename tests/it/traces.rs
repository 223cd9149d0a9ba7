//! Each attempt is a span of its delivery's trace: on the wire, in the log, and at a collector.

use std::collections::HashSet;

use super::cli::{run, taskbell};
use super::daemon::Running;
use super::support::receiver::Receiver;
use super::support::{TestDatabase, complete, eventually, issue};

/// A daemon that delivers one webhook at the second attempt. What the receiver got as
/// `traceparent`, the delivery's key, and the daemon's log.
async fn deliver(more: &[(&str, &str)]) -> (Vec<String>, String, String) {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key.jwk");
    let key = key.to_str().unwrap();
    assert_eq!(run(taskbell(None, &["keys", "generate", key])).await.code, 0);
    let environment = [
        ("TASKBELL_SIGNING__KEY_FILES", key),
        ("TASKBELL_HTTP__CA_FILE", receiver.ca_file.path().to_str().unwrap()),
        ("TASKBELL_GUARD__ALLOW_PRIVATE", "true"),
        ("TASKBELL_RETRY__SCHEDULE", "100ms"),
    ];
    let daemon = Running::start(&database, &[&environment, more].concat()).await;
    let client = database.client().await;
    issue(&client, "t1", Some(&receiver.url("/once?secret=hush"))).await;
    complete(&client, "t1").await;
    let delivered = super::support::daemon::delivery_in(&client, "t1", "delivered").await;
    let quiet = more.iter().any(|(name, _)| *name == "TASKBELL_LOG__FILTER");
    let log = eventually("both lines", async || {
        let log = daemon.log();
        (quiet || log.matches("\"attempt ended\"").count() == 2).then_some(log)
    })
    .await;
    assert!(daemon.stop().success());
    let posts = receiver.posts();
    for post in &posts {
        let covered = post.headers["signature-input"].to_str().unwrap();
        assert!(!covered.contains("traceparent"), "{covered}");
    }
    let parents = posts.iter().map(|post| post.headers["traceparent"].to_str().unwrap().to_owned());
    assert!(!log.contains("hush"), "{log}");
    (parents.collect(), delivered["idempotency_key"].as_str().unwrap().to_owned(), log)
}

/// Version, trace, span and flags, as W3C Trace Context has them.
fn parts(traceparent: &str) -> [&str; 4] {
    let parts: [&str; 4] = traceparent.split('-').collect::<Vec<_>>().try_into().unwrap();
    for (part, length) in parts.iter().zip([2, 32, 16, 2]) {
        assert!(
            part.len() == length && part.bytes().all(|b| b"0123456789abcdef".contains(&b)),
            "{traceparent}"
        );
        assert!(length == 2 || part.bytes().any(|b| b != b'0'), "{traceparent}");
    }
    parts
}

#[tokio::test]
async fn the_receiver_gets_one_trace_and_a_span_for_each_attempt_and_so_does_the_log() {
    let (parents, key, log) = deliver(&[]).await;
    let trace = key.strip_prefix("whk_").unwrap().replace('-', "");
    let mut spans = HashSet::new();
    for parent in &parents {
        let [version, trace_id, span_id, flags] = parts(parent);
        assert_eq!((version, trace_id, flags), ("00", trace.as_str(), "01"));
        assert!(log.contains(&format!("\"trace_id\":\"{trace_id}\",\"span_id\":\"{span_id}\"")), "{log}");
        spans.insert(span_id);
    }
    assert_eq!((parents.len(), spans.len()), (2, 2));
}

#[cfg(not(feature = "otlp"))]
#[tokio::test]
async fn a_build_without_opentelemetry_refuses_to_be_told_of_a_collector() {
    let mut command = taskbell(None, &["run"]);
    command.env("TASKBELL_TRACES__ENDPOINT", "http://127.0.0.1:4318");
    let said = run(command).await;
    assert!(
        said.code == 2 && said.err.contains("traces.endpoint: needs a build with OpenTelemetry"),
        "{said:?}"
    );
}

#[cfg(not(feature = "otlp"))]
#[tokio::test]
async fn a_build_without_opentelemetry_says_that_the_variable_has_no_effect() {
    let database = TestDatabase::migrated().await;
    let endpoint = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")];
    let daemon = Running::start(&database, &endpoint).await;
    assert!(daemon.log().contains("this build sends no spans"), "{}", daemon.log());
    assert!(daemon.stop().success());
}

#[cfg(feature = "otlp")]
mod otlp {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::Bytes;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::post;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::KeyValue;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
    use prost::Message;
    use tokio::net::TcpListener;

    use super::{deliver, parts};
    use crate::support::Shared;

    /// A stand-in for a collector: refuses the first request for the moment, and keeps the rest.
    async fn collector() -> (String, Shared<Vec<ResourceSpans>>) {
        let kept: Shared<Vec<ResourceSpans>> = Arc::default();
        let (seen, asked) = (kept.clone(), Arc::new(Mutex::new(0)));
        let take = move |headers: HeaderMap, body: Bytes| async move {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            *asked.lock().unwrap() += 1;
            if *asked.lock().unwrap() == 1 {
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            seen.lock().unwrap().extend(ExportTraceServiceRequest::decode(body).unwrap().resource_spans);
            StatusCode::OK
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/v1/traces", post(take));
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        (format!("http://{address}"), kept)
    }

    fn value(attributes: &[KeyValue], name: &str) -> Option<Value> {
        attributes.iter().find(|one| one.key == name)?.value.clone()?.value
    }

    // A stop is waited for without giving way, and the collector must answer meanwhile.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_collector_gets_the_spans_that_the_receiver_was_told_of() {
        let (endpoint, kept) = collector().await;
        // What the log leaves out is a span all the same; only our line at the start is needed.
        let quiet = ("TASKBELL_LOG__FILTER", "warn,taskbell::daemon::run=info");
        let (parents, _, log) = deliver(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), quiet]).await;
        assert!(!log.contains("attempt ended"), "{log}");
        // The daemon has ended, and sent what it had.
        let batches = kept.lock().unwrap().clone();
        let text = |text: &str| Some(Value::StringValue(text.to_owned()));
        for batch in &batches {
            let resource = batch.resource.as_ref().unwrap();
            assert_eq!(value(&resource.attributes, "service.name"), text("taskbell"));
        }
        let spans: Vec<_> =
            batches.iter().flat_map(|batch| &batch.scope_spans).flat_map(|scope| &scope.spans).collect();
        assert_eq!(spans.len(), 2, "{spans:#?}");
        for (span, (parent, status, verdict)) in
            spans.iter().zip([(&parents[0], 503, "release"), (&parents[1], 200, "acknowledge")])
        {
            let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
            let [_, trace_id, span_id, _] = parts(parent);
            assert_eq!((hex(&span.trace_id).as_str(), hex(&span.span_id).as_str()), (trace_id, span_id));
            assert_eq!(span.kind, 3, "a client's");
            assert!(0 < span.start_time_unix_nano && span.start_time_unix_nano <= span.end_time_unix_nano);
            let attribute = |name| value(&span.attributes, name);
            assert_eq!(attribute("http.response.status_code"), Some(Value::IntValue(status)));
            assert_eq!(attribute("taskbell.verdict"), text(verdict));
            assert_eq!(attribute("taskbell.task.id"), text("t1"));
            assert_eq!(attribute("server.address"), text("localhost"));
            assert_eq!(attribute("error.type"), (status == 503).then(|| text("server_error")).flatten());
            assert_eq!(span.status.as_ref().unwrap().code, if status == 503 { 2 } else { 0 });
        }
        assert!(!format!("{spans:?}").contains("hush"));
    }
}
