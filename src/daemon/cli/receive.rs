//! `receive`: a sample buyer that verifies what arrives.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use clap::Args;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::webhook::verify::{Arrived, ReplayWindow, Revocation, Verifier, VerifyingKeys};

#[derive(Debug, Args)]
pub(super) struct Receive {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The seller's JWKS document, as a file (`taskbell keys jwks`).
    #[arg(long)]
    jwks: PathBuf,
    /// The scheme that the seller was given, if something in front of us ends TLS.
    #[arg(long, default_value = "http")]
    scheme: String,
}

/// A webhook that was verified.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) body: Value,
    pub(super) keyid: String,
}

#[derive(Clone)]
struct Buyer {
    verifier: Arc<Verifier>,
    scheme: String,
    arrivals: mpsc::UnboundedSender<Arrival>,
}

impl Receive {
    pub(super) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(&self.jwks)
            .with_context(|| format!("{} cannot be read", self.jwks.display()))?;
        let keys = VerifyingKeys::parse(&text).with_context(|| format!("--jwks {}", self.jwks.display()))?;
        let listener = TcpListener::bind(self.listen).await?;
        println!("listening on {}://{}/", self.scheme, listener.local_addr()?);
        let (arrivals, mut arrived) = mpsc::unbounded_channel();
        let printing = tokio::spawn(async move {
            while let Some(Arrival { body, keyid }) = arrived.recv().await {
                println!("verified with {keyid}: {body}");
            }
        });
        serve(listener, keys, self.scheme, arrivals, stop).await?;
        printing.await?;
        Ok(())
    }
}

/// Serves until `stop` is cancelled; every verified webhook goes to `arrivals`.
pub(super) async fn serve(
    listener: TcpListener,
    keys: VerifyingKeys,
    scheme: String,
    arrivals: mpsc::UnboundedSender<Arrival>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let window = ReplayWindow::new(MAX_NONCES);
    let verifier = Arc::new(Verifier::new(keys, Revocation::default(), window));
    let app = Router::new().fallback(receive).with_state(Buyer { verifier, scheme, arrivals });
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

async fn receive(
    State(buyer): State<Buyer>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let url = format!("{}://{host}{target}", buyer.scheme);
    let arrived = Arrived { method: method.as_str(), url: &url, headers: &headers, body: &body };
    match buyer.verifier.verify(arrived, SystemTime::now()) {
        Ok(keyid) => match serde_json::from_slice(&body) {
            Ok(body) => {
                let _ = buyer.arrivals.send(Arrival { body, keyid });
                StatusCode::OK.into_response()
            }
            Err(_) => StatusCode::BAD_REQUEST.into_response(),
        },
        Err(refusal) => {
            eprintln!("refused: {refusal}: {}", refusal.explain());
            let challenge = format!("Signature error=\"{refusal}\"");
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
        }
    }
}

/// For one key, within the six minutes that a signature can live.
const MAX_NONCES: usize = 100_000;
