//! The admin listener: metrics, health, readiness, the published keys, and a page for people.

pub mod page;

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::pulse::Pulse;
use crate::task::SigningScope;
use crate::webhook::Signer;
use page::Page;

/// What the admin listener shows.
#[derive(Clone)]
pub struct Admin {
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// Whether the LISTEN connection is up.
    pub listener_up: watch::Receiver<bool>,
    /// Whether the outbox can be read and written.
    pub outbox_up: watch::Receiver<bool>,
    /// Whether the worker moves.
    pub pulse: Pulse,
    /// Whether we still take new work.
    pub accepting: watch::Receiver<bool>,
    /// Whose keys are published.
    pub signer: Arc<Signer>,
}

/// Serves until `stop` is cancelled.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    admin: Admin,
    page: Option<Page>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let routes = page.map_or_else(Router::new, page::routes).merge(router(admin));
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/.well-known/jwks.json", get(|admin| jwks(admin, None)))
        .route("/.well-known/jwks/{scope}", get(|admin, Path(scope)| jwks(admin, Some(scope))))
        .with_state(admin)
}

async fn metrics(State(admin): State<Admin>) -> Response {
    metrics_process::Collector::default().collect();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.render()).into_response()
}

/// Healthy: the worker moves. Only a new process repairs one that does not; a database that is
/// down is no reason for a new process.
async fn healthy(State(admin): State<Admin>) -> Response {
    match admin.pulse.beats() {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the worker is stuck\n").into_response(),
    }
}

/// Ready: subscribed to the bell, on a database that takes writes, and taking work.
async fn ready(State(admin): State<Admin>) -> Response {
    let (listener, outbox) = (*admin.listener_up.borrow(), *admin.outbox_up.borrow());
    let accepting = *admin.accepting.borrow();
    let all = listener && outbox && accepting;
    let status = if all { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "listener": listener, "outbox": outbox, "accepting": accepting }))).into_response()
}

/// The keys of one signing scope, or the default ones.
async fn jwks(State(admin): State<Admin>, scope: Option<String>) -> Response {
    let scope = scope.map(|scope| SigningScope::parse(&scope)).transpose();
    let keys = admin.signer.keys();
    let Some(ring) = scope.ok().and_then(|scope| keys.ring(scope.as_ref())) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    // Receivers cache a JWKS for half an hour at most; five minutes let a new key spread sooner.
    ([(header::CACHE_CONTROL, "public, max-age=300")], Json(ring.jwks(SystemTime::now()))).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::time::Instant;

    use super::*;
    use crate::webhook::{KeyRing, KeySets, LegacyModes, SigningAlgorithm, SigningKey};

    /// An admin listener in a given state; status, headers and body of its answers.
    struct Served {
        address: std::net::SocketAddr,
        listener_up: watch::Sender<bool>,
        outbox_up: watch::Sender<bool>,
        accepting: watch::Sender<bool>,
        due_back: watch::Sender<Instant>,
        stop: CancellationToken,
        ended: tokio::task::JoinHandle<std::io::Result<()>>,
    }

    fn signer() -> Signer {
        let ring = |kid| {
            KeyRing::new(vec![SigningKey::generate(SigningAlgorithm::Ed25519, Some(kid)).unwrap()]).unwrap()
        };
        let scopes = [(SigningScope::parse("tenant").unwrap(), ring("t1"))].into();
        Signer::new(KeySets::new(ring("k1"), scopes), LegacyModes::default())
    }

    const SLACK: Duration = Duration::from_secs(60);

    impl Served {
        async fn start() -> Self {
            let recorder = PrometheusBuilder::new().build_recorder();
            metrics::with_local_recorder(&recorder, || metrics::counter!("bells_total").increment(3));
            let (listener_up, is_up) = watch::channel(false);
            let (outbox_up, writes) = watch::channel(true);
            let (accepting, is_accepting) = watch::channel(true);
            let (due_back, due) = watch::channel(Instant::now());
            let admin = Admin {
                metrics: recorder.handle(),
                listener_up: is_up,
                outbox_up: writes,
                pulse: Pulse::new(due, SLACK),
                accepting: is_accepting,
                signer: Arc::new(signer()),
            };
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let stop = CancellationToken::new();
            let ended = tokio::spawn(serve(listener, admin, None, stop.clone()));
            Self { address, listener_up, outbox_up, accepting, due_back, stop, ended }
        }

        async fn get(&self, path: &str) -> reqwest::Response {
            crate::daemon::telemetry::install_crypto();
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            client.get(format!("http://{}{path}", self.address)).send().await.unwrap()
        }

        async fn ready(&self) -> (u16, String) {
            let answer = self.get("/readyz").await;
            (answer.status().as_u16(), answer.text().await.unwrap())
        }
    }

    #[tokio::test]
    async fn readiness_names_what_is_not_ready_while_health_stays() {
        let served = Served::start().await;
        assert_eq!(
            served.ready().await,
            (503, r#"{"accepting":true,"listener":false,"outbox":true}"#.to_owned())
        );
        served.listener_up.send_replace(true);
        assert_eq!(
            served.ready().await,
            (200, r#"{"accepting":true,"listener":true,"outbox":true}"#.to_owned())
        );
        served.outbox_up.send_replace(false);
        assert_eq!(
            served.ready().await,
            (503, r#"{"accepting":true,"listener":true,"outbox":false}"#.to_owned())
        );
        served.outbox_up.send_replace(true);
        served.accepting.send_replace(false);
        assert_eq!(
            served.ready().await,
            (503, r#"{"accepting":false,"listener":true,"outbox":true}"#.to_owned())
        );
        assert_eq!(served.get("/healthz").await.status(), 200);
        served.due_back.send_replace(Instant::now() - 2 * SLACK);
        assert_eq!(served.get("/healthz").await.status(), 503);
    }

    #[tokio::test]
    async fn metrics_and_keys_come_in_their_types() {
        let served = Served::start().await;
        let metrics = served.get("/metrics").await;
        assert_eq!(metrics.headers()["content-type"], "text/plain; version=0.0.4");
        assert!(metrics.text().await.unwrap().contains("bells_total 3"));
        let keys = served.get("/.well-known/jwks.json").await;
        assert_eq!(keys.headers()["content-type"], "application/json");
        assert_eq!(keys.headers()["cache-control"], "public, max-age=300");
        let of_default: serde_json::Value = serde_json::from_str(&keys.text().await.unwrap()).unwrap();
        assert_eq!(
            (&of_default["keys"][0]["kid"], of_default["keys"].as_array().unwrap().len()),
            (&json!("k1"), 1)
        );
        let of_tenant = served.get("/.well-known/jwks/tenant").await.text().await.unwrap();
        assert!(of_tenant.contains("\"t1\"") && !of_tenant.contains("\"d\""));
        assert_eq!(served.get("/.well-known/jwks/nobody").await.status(), 404);
        assert_eq!(served.get("/").await.status(), 404);
    }

    #[tokio::test]
    async fn a_stop_ends_the_listener_although_a_client_keeps_its_connection() {
        let served = Served::start().await;
        let _idle = tokio::net::TcpStream::connect(served.address).await.unwrap();
        assert_eq!(served.get("/healthz").await.status(), 200);
        served.stop.cancel();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(5), served.ended).await;
        ended.expect("the listener ends at once").unwrap().unwrap();
    }
}
