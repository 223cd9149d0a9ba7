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
