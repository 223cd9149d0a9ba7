//! `receive`: a sample buyer that verifies what arrives, as `taskbell::webhook::verify` can.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, bail};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use clap::Args;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::webhook::verify::{
    Arrived, Payload, PayloadError, ReplayWindow, Revocation, Verifier, VerifyingKeys, verify_hmac,
};
use crate::webhook::{IdempotencyKey, MAX_BODY_BYTES, SignatureError};

#[derive(Debug, Args)]
pub(super) struct Receive {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The seller's JWKS document, as a file (`taskbell keys jwks`).
    #[arg(long, required_unless_present = "hmac_secret_file")]
    jwks: Option<PathBuf>,
    /// Expect legacy HMAC-SHA256 with this secret instead of signatures.
    #[arg(long, conflicts_with = "jwks")]
    hmac_secret_file: Option<PathBuf>,
    /// The scheme that the seller was given, if something in front of us ends TLS.
    #[arg(long, default_value = "http")]
    scheme: String,
}

/// How the sender proves itself; one way, as it was registered.
pub(super) enum Proof {
    Signature(Box<Verifier>),
    Hmac(SecretString),
}

/// A webhook that was verified.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) payload: Payload,
    /// The body as it came.
    pub(super) text: String,
    /// Who signed it.
    pub(super) proven_by: String,
    /// Whether this delivery had come before.
    pub(super) again: bool,
}

#[derive(Clone)]
struct Buyer {
    proof: Arc<Proof>,
    scheme: String,
    seen: Arc<Mutex<HashSet<IdempotencyKey>>>,
    arrivals: mpsc::UnboundedSender<Arrival>,
}

impl Receive {
    pub(super) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let proof = self.proof()?;
        let listener = TcpListener::bind(self.listen).await?;
        println!("listening on {}://{}/", self.scheme, listener.local_addr()?);
        let (arrivals, mut arrived) = mpsc::unbounded_channel();
        let printing = tokio::spawn(async move {
            while let Some(Arrival { text, proven_by, again, .. }) = arrived.recv().await {
                let word = if again { "verified again" } else { "verified" };
                println!("{word} with {proven_by}: {text}");
            }
        });
        serve(listener, proof, self.scheme, arrivals, stop).await?;
        printing.await?;
        Ok(())
    }

    fn proof(&self) -> anyhow::Result<Proof> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
        };
        match (&self.jwks, &self.hmac_secret_file) {
            (_, Some(path)) => Ok(Proof::Hmac(SecretString::from(read(path)?.trim()))),
            (Some(path), None) => {
                let keys = VerifyingKeys::parse(&read(path)?);
                Ok(Proof::of_keys(keys.with_context(|| format!("--jwks {}", path.display()))?))
            }
            (None, None) => bail!("--jwks or --hmac-secret-file must be given"),
        }
    }
}

impl Proof {
    pub(super) fn of_keys(keys: VerifyingKeys) -> Self {
        let window = ReplayWindow::new(MAX_NONCES);
        Self::Signature(Box::new(Verifier::new(keys, Revocation::default(), window)))
    }
}

/// Serves until `stop` is cancelled; every verified webhook goes to `arrivals`.
pub(super) async fn serve(
    listener: TcpListener,
    proof: Proof,
    scheme: String,
    arrivals: mpsc::UnboundedSender<Arrival>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let buyer = Buyer { proof: Arc::new(proof), scheme, seen: Arc::default(), arrivals };
    let app = Router::new().fallback(receive).layer(DefaultBodyLimit::max(MAX_BODY_BYTES)).with_state(buyer);
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
    let read = buyer
        .verify(&method, &uri, &headers, &body)
        .and_then(|proven_by| Ok((proven_by, Payload::parse(&body).map_err(PayloadError::code)?)));
    match read {
        Ok((proven_by, payload)) => {
            let key = payload.idempotency_key.clone();
            let again = !buyer.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
            let text = String::from_utf8_lossy(&body).into_owned();
            let _ = buyer.arrivals.send(Arrival { payload, text, proven_by, again });
            StatusCode::OK.into_response()
        }
        Err(refusal) => {
            eprintln!("refused: {refusal}: {}", refusal.explain());
            let challenge = format!("Signature error=\"{refusal}\"");
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
        }
    }
}

impl Buyer {
    /// Who sent it.
    fn verify(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<String, SignatureError> {
        match &*self.proof {
            Proof::Hmac(secret) => {
                verify_hmac(secret, headers, body, SystemTime::now()).map(|()| "the shared secret".to_owned())
            }
            Proof::Signature(verifier) => {
                let host =
                    headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
                let target = uri.path_and_query().map_or("/", |target| target.as_str());
                let url = format!("{}://{host}{target}", self.scheme);
                let arrived = Arrived { method: method.as_str(), url: &url, headers, body };
                verifier.verify(arrived, SystemTime::now())
            }
        }
    }
}

/// For one key, within the six minutes that a signature can live.
const MAX_NONCES: usize = 100_000;
