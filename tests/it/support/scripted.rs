//! A receiver that plays a script, well-behaved or not, on the socket itself: what an HTTP
//! server library would never send can be sent here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use reqwest::header::HeaderMap;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use taskbell::daemon::database::tls_config;
use taskbell::task::{CallbackUrl, UrlSchemes};
use taskbell::webhook::{
    GuardPolicy, IdempotencyKey, KeyRing, LegacyModes, Outcome, Prepared, Resolver, Sender, SenderOptions,
    Signer, SigningAlgorithm, SigningKey, TraceContext,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What the receiver does with every request, or instead of reading one.
#[derive(Debug, Clone, Copy)]
pub enum Script {
    /// Answers with these bytes and keeps the connection.
    Answer(&'static [u8]),
    /// Answers with the first text, and with the second one for ever.
    Repeat(&'static str, &'static str),
    /// The same, the second text every so often.
    Drip(&'static str, &'static str),
    /// Answers with these bytes and closes.
    AnswerAndClose(&'static [u8]),
    /// Answers nothing.
    Hang,
    /// Sends these bytes in place of a TLS handshake, and then nothing.
    InsteadOfTls(&'static [u8]),
    /// Closes before the TLS handshake.
    CloseBeforeTls,
}

/// One request as it arrived.
pub struct Request {
    pub line: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub connection: usize,
}

pub struct Receiver {
    pub port: u16,
    pub requests: mpsc::UnboundedReceiver<Request>,
    /// The authority that signed its certificate, as a PEM file.
    pub root: tempfile::NamedTempFile,
    connections: Arc<AtomicUsize>,
    /// For every connection that a script ended on: the bytes of answer that it got rid of.
    pub ended: mpsc::UnboundedReceiver<usize>,
}

impl Receiver {
    /// Starts on a free port of the loopback, with a certificate for `name`.
    pub async fn start(script: Script, name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tls, root) = certificates(name);
        let (heard, requests) = mpsc::unbounded_channel();
        let (end, ended) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let connection = 1 + count.fetch_add(1, Ordering::SeqCst);
                let (tls, heard, end) = (tls.clone(), heard.clone(), end.clone());
                tokio::spawn(async move {
                    let written = serve(tls, stream, script, heard, connection).await;
                    let _ = end.send(written);
                });
            }
        });
        Self { port, requests, root, connections, ended }
    }

    pub fn url(&self, rest: &str) -> String {
        format!("https://localhost:{}{rest}", self.port)
    }

    /// A sender that trusts the receiver's authority and may call the loopback.
    pub fn sender(&self) -> Sender {
        self.sender_under(GuardPolicy { allow_private: true, ..GuardPolicy::default() })
    }

    pub fn sender_under(&self, policy: GuardPolicy) -> Sender {
        self.sender_resolving(Resolver::new(policy, 4))
    }

    pub fn sender_resolving(&self, resolver: Resolver) -> Sender {
        let tls = tls_config(Some(self.root.path())).unwrap();
        Sender::with_resolver(tls, resolver, &SenderOptions::default()).unwrap()
    }

    pub fn heard_nothing(&mut self) -> bool {
        self.requests.try_recv().is_err()
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn certificates(name: &str) -> (TlsAcceptor, tempfile::NamedTempFile) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let root = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(root.path(), authority.pem()).unwrap();
    let chain = vec![CertificateDer::from(leaf)];
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), root)
}

/// Gives the bytes of answer that were written until the connection ended.
async fn serve(
    tls: TlsAcceptor,
    mut stream: TcpStream,
    script: Script,
    heard: mpsc::UnboundedSender<Request>,
    connection: usize,
) -> usize {
    match script {
        Script::CloseBeforeTls => return 0,
        Script::InsteadOfTls(bytes) => {
            let _ = stream.write_all(bytes).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
            return bytes.len();
        }
        _ => {}
    }
    let Ok(mut stream) = tls.accept(stream).await else { return 0 };
    let mut written = 0;
    while let Some(mut request) = read_request(&mut stream).await {
        request.connection = connection;
        let _ = heard.send(request);
        match script {
            Script::Answer(answer) => {
                stream.write_all(answer).await.unwrap();
                written += answer.len();
            }
            Script::AnswerAndClose(answer) => {
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
                return written + answer.len();
            }
            Script::Repeat(start, again) => {
                let _ = stream.write_all(start.as_bytes()).await;
                let many = again.repeat(1 + 0x4000 / again.len());
                while stream.write_all(many.as_bytes()).await.is_ok() {
                    written += many.len();
                }
                return written;
            }
            Script::Drip(start, again) => {
                let _ = stream.write_all(start.as_bytes()).await;
                while stream.write_all(again.as_bytes()).await.is_ok() && stream.flush().await.is_ok() {
                    written += again.len();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                return written;
            }
            Script::Hang => {
                let _ = stream.read_u8().await;
                return written;
            }
            Script::InsteadOfTls(_) | Script::CloseBeforeTls => unreachable!("ended above"),
        }
    }
    written
}

async fn read_request(stream: &mut TlsStream<TcpStream>) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let (line, fields) = head.trim_end().split_once("\r\n").unwrap();
    let headers: HeaderMap = fields
        .split("\r\n")
        .map(|field| field.split_once(": ").unwrap())
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect::<Vec<(reqwest::header::HeaderName, _)>>()
        .into_iter()
        .collect();
    let mut body = vec![0; headers["content-length"].to_str().unwrap().parse().unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { line: line.to_owned(), headers, body, connection: 0 })
}

pub fn prepared(url: &str) -> Prepared {
    Prepared {
        url: CallbackUrl::parse(url, UrlSchemes::AllowHttp).unwrap(),
        key: IdempotencyKey::parse("whk_00000000-0000-4000-8000-000000000001").unwrap(),
        body: Bytes::from_static(br#"{"idempotency_key":"whk_00000000-0000-4000-8000-000000000001"}"#),
        authentication: None,
        signing_scope: None,
    }
}

pub fn signer() -> Signer {
    let key = SigningKey::generate(SigningAlgorithm::Ed25519, Some("k1")).unwrap();
    Signer::new(KeyRing::new(vec![key]).unwrap(), LegacyModes::default())
}

/// The trace context of some attempt.
pub fn trace() -> TraceContext {
    TraceContext::of(&prepared("https://localhost/").key, uuid::Uuid::new_v4())
}

/// Nothing in these tests compares it with a clock.
pub fn signing_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_776_520_800)
}

/// One attempt with a deadline that no test should reach.
pub async fn send(sender: &Sender, url: &str) -> Outcome {
    send_within(sender, url, Duration::from_secs(20)).await
}

pub async fn send_within(sender: &Sender, url: &str, deadline: Duration) -> Outcome {
    sender.send(&prepared(url), &signer(), trace(), signing_time(), deadline).await
}

pub fn answered(status: u16) -> Outcome {
    Outcome::Answered { status, retry_after: None, signature_error: None }
}

pub const OK: Script = Script::Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
