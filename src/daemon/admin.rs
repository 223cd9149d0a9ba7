//! The admin listener: metrics, health, readiness and the published keys.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What the admin listener shows.
#[derive(Clone)]
pub struct Admin {
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// Whether the LISTEN connection is up.
    pub listener_up: watch::Receiver<bool>,
    /// Whether we still take new work.
    pub accepting: watch::Receiver<bool>,
    /// The JWKS document.
    pub jwks: Arc<Value>,
}

/// Serves until `stop` is cancelled.
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: TcpListener, admin: Admin, stop: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router(admin)).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/.well-known/jwks.json", get(jwks))
        .with_state(admin)
}

async fn metrics(State(admin): State<Admin>) -> Response {
    metrics_process::Collector::default().collect();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.render()).into_response()
}

/// Ready: subscribed to the bell, which implies a database that answers, and taking work.
async fn ready(State(admin): State<Admin>) -> Response {
    let (listener, accepting) = (*admin.listener_up.borrow(), *admin.accepting.borrow());
    let status = if listener && accepting { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "listener": listener, "accepting": accepting }))).into_response()
}

async fn jwks(State(admin): State<Admin>) -> Response {
    // Receivers cache a JWKS for half an hour at most; five minutes let a new key spread sooner.
    ([(header::CACHE_CONTROL, "public, max-age=300")], Json((*admin.jwks).clone())).into_response()
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    /// An admin listener in a given state; status, headers and body of its answers.
    struct Served {
        address: std::net::SocketAddr,
        listener_up: watch::Sender<bool>,
        accepting: watch::Sender<bool>,
        stop: CancellationToken,
        ended: tokio::task::JoinHandle<std::io::Result<()>>,
    }

    impl Served {
        async fn start() -> Self {
            let recorder = PrometheusBuilder::new().build_recorder();
            metrics::with_local_recorder(&recorder, || metrics::counter!("bells_total").increment(3));
            let (listener_up, is_up) = watch::channel(false);
            let (accepting, is_accepting) = watch::channel(true);
            let admin = Admin {
                metrics: recorder.handle(),
                listener_up: is_up,
                accepting: is_accepting,
                jwks: Arc::new(json!({ "keys": [{ "kid": "k1" }] })),
            };
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let stop = CancellationToken::new();
            let ended = tokio::spawn(serve(listener, admin, stop.clone()));
            Self { address, listener_up, accepting, stop, ended }
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
        assert_eq!(served.ready().await, (503, r#"{"accepting":true,"listener":false}"#.to_owned()));
        served.listener_up.send_replace(true);
        assert_eq!(served.ready().await, (200, r#"{"accepting":true,"listener":true}"#.to_owned()));
        served.accepting.send_replace(false);
        assert_eq!(served.ready().await, (503, r#"{"accepting":false,"listener":true}"#.to_owned()));
        assert_eq!(served.get("/healthz").await.status(), 200);
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
        assert_eq!(keys.text().await.unwrap(), r#"{"keys":[{"kid":"k1"}]}"#);
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
