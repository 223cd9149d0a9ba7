//! `receive`: a sample buyer that verifies what arrives.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use clap::Args;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::webhook::verify::{Received, Verifier};

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
    verifier: Arc<Mutex<Verifier>>,
    scheme: String,
    arrivals: mpsc::UnboundedSender<Arrival>,
}

impl Receive {
    pub(super) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(&self.jwks)
            .with_context(|| format!("{} cannot be read", self.jwks.display()))?;
        let jwks =
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", self.jwks.display()))?;
        let listener = TcpListener::bind(self.listen).await?;
        println!("listening on {}://{}/", self.scheme, listener.local_addr()?);
        let (arrivals, mut arrived) = mpsc::unbounded_channel();
        let printing = tokio::spawn(async move {
            while let Some(Arrival { body, keyid }) = arrived.recv().await {
                println!("verified with {keyid}: {body}");
            }
        });
        serve(listener, &jwks, self.scheme, arrivals, stop).await?;
        printing.await?;
        Ok(())
    }
}

/// Serves until `stop` is cancelled; every verified webhook goes to `arrivals`.
pub(super) async fn serve(
    listener: TcpListener,
    jwks: &Value,
    scheme: String,
    arrivals: mpsc::UnboundedSender<Arrival>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let verifier = Arc::new(Mutex::new(Verifier::new(jwks)));
    let app = Router::new().fallback(receive).with_state(Buyer { verifier, scheme, arrivals });
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

async fn receive(State(buyer): State<Buyer>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let url = format!("{}://{}{target}", buyer.scheme, header("host").unwrap_or_default());
    let received = Received {
        url: &url,
        content_type: header("content-type"),
        content_digest: header("content-digest"),
        signature_input: header("signature-input"),
        signature: header("signature"),
        body: &body,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let verdict = buyer.verifier.lock().unwrap_or_else(PoisonError::into_inner).verify(&received, now);
    match verdict {
        Ok(keyid) => match serde_json::from_slice(&body) {
            Ok(body) => {
                let _ = buyer.arrivals.send(Arrival { body, keyid });
                StatusCode::OK.into_response()
            }
            Err(_) => StatusCode::BAD_REQUEST.into_response(),
        },
        Err(refusal) => {
            eprintln!("refused: {refusal}");
            let challenge = format!("Signature error=\"{}\"", refusal.code());
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
        }
    }
}
