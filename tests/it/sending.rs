//! The sender against a scripted receiver: real sockets, real TLS, a certificate authority of
//! the test's own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use reqwest::header::HeaderMap;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use taskbell::daemon::database::tls_config;
use taskbell::task::{CallbackUrl, UrlSchemes};
use taskbell::webhook::verify::{Arrived, ReplayWindow, Revocation, Verifier, VerifyingKeys};
use taskbell::webhook::{
    FailureReason, GuardPolicy, IdempotencyKey, KeyRing, LegacyModes, Outcome, Prepared, Sender,
    SenderOptions, SignatureError, Signer, SigningAlgorithm, SigningKey,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What the receiver does with every request.
#[derive(Debug, Clone, Copy)]
enum Script {
    /// Answers with these bytes and keeps the connection.
    Answer(&'static str),
    /// Answers 200 with a body that never ends.
    AnswerForEver,
    /// Answers 200 with a long body, a byte every so often.
    Drip,
    /// Answers nothing.
    Hang,
    /// Closes without an answer.
    Close,
}

/// One request as it arrived.
struct Request {
    line: String,
    headers: HeaderMap,
    body: Vec<u8>,
    connection: usize,
}

struct Receiver {
    port: u16,
    requests: mpsc::UnboundedReceiver<Request>,
    /// The authority that signed its certificate, as a PEM file.
    root: tempfile::NamedTempFile,
}

impl Receiver {
    /// Starts on a free port of the loopback, with a certificate for `name`.
    async fn start(script: Script, name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tls, root) = certificates(name);
        let (sender, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for connection in 1.. {
                let (stream, _): (TcpStream, SocketAddr) = listener.accept().await.unwrap();
                tokio::spawn(serve(tls.clone(), stream, script, sender.clone(), connection));
            }
        });
        Self { port, requests, root }
    }

    fn url(&self, rest: &str) -> String {
        format!("https://localhost:{}{rest}", self.port)
    }

    /// A sender that trusts the receiver's authority and may call the loopback.
    fn sender(&self) -> Sender {
        self.sender_under(GuardPolicy { allow_private: true, ..GuardPolicy::default() })
    }

    fn sender_under(&self, policy: GuardPolicy) -> Sender {
        let tls = tls_config(Some(self.root.path())).unwrap();
        Sender::new(tls, policy, &SenderOptions::default()).unwrap()
    }

    fn heard_nothing(&mut self) -> bool {
        self.requests.try_recv().is_err()
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

async fn serve(
    tls: TlsAcceptor,
    stream: TcpStream,
    script: Script,
    sender: mpsc::UnboundedSender<Request>,
    connection: usize,
) {
    let Ok(mut stream) = tls.accept(stream).await else { return };
    while let Some(mut request) = read_request(&mut stream).await {
        request.connection = connection;
        let _ = sender.send(request);
        match script {
            Script::Answer(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
            Script::AnswerForEver => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
                while stream.write_all(chunk.as_bytes()).await.is_ok() {}
            }
            Script::Drip => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n").await;
                while stream.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Script::Hang => std::future::pending().await,
            Script::Close => return,
        }
    }
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

fn prepared(url: &str) -> Prepared {
    Prepared {
        url: CallbackUrl::parse(url, UrlSchemes::AllowHttp).unwrap(),
        key: IdempotencyKey::parse("whk_00000000-0000-4000-8000-000000000001").unwrap(),
        body: Bytes::from_static(br#"{"idempotency_key":"whk_00000000-0000-4000-8000-000000000001"}"#),
        authentication: None,
        signing_scope: None,
    }
}

fn signer() -> Signer {
    let key = SigningKey::generate(SigningAlgorithm::Ed25519, Some("k1")).unwrap();
    Signer::new(KeyRing::new(vec![key]).unwrap(), LegacyModes::default())
}

/// Nothing here compares it with a clock.
fn signing_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_776_520_800)
}

async fn send(sender: &Sender, url: &str) -> Outcome {
    sender.send(&prepared(url), &signer(), signing_time(), Duration::from_secs(20)).await
}

fn answered(status: u16) -> Outcome {
    Outcome::Answered { status, retry_after: None, signature_error: None }
}

const OK: Script = Script::Answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");

#[tokio::test]
async fn what_arrives_is_what_was_signed() {
    let mut receiver = Receiver::start(OK, "localhost").await;
    let (sender, signer) = (receiver.sender(), signer());
    let keys =
        VerifyingKeys::parse(&signer.keys().ring(None).unwrap().jwks(signing_time()).to_string()).unwrap();
    let verifier = Verifier::new(keys, Revocation::default(), ReplayWindow::new(100));
    for rest in [
        "",
        "/hook",
        "/hook?",
        "?x=1",
        "/a/../b//c/./d",
        "/%7euser/%e2%98%83/%2F",
        "/%2e%2e/x",
        "/\u{e9}/\"{}|^`[]",
        "/p?b=2&a='1'&c=%7e\u{e9}+\"<>",
        "/p#fragment",
    ] {
        let prepared = prepared(&receiver.url(rest));
        let now = signing_time();
        assert_eq!(
            sender.send(&prepared, &signer, now, Duration::from_secs(20)).await,
            answered(200),
            "{rest}"
        );
        let request = receiver.requests.recv().await.unwrap();
        let target = request.line.strip_prefix("POST ").unwrap().strip_suffix(" HTTP/1.1").unwrap();
        let url = format!("https://{}{target}", request.headers["host"].to_str().unwrap());
        let arrived = Arrived { method: "POST", url: &url, headers: &request.headers, body: &request.body };
        assert_eq!(verifier.verify(arrived, now).as_deref(), Ok("k1"), "{rest} arrived as {url}");
        assert_eq!(request.body, prepared.body);
        for (name, value) in [("content-type", "application/json"), ("accept-encoding", "identity")] {
            assert_eq!(request.headers[name], value);
        }
        assert_eq!(request.connection, 1, "the connection is used again");
    }
}

#[tokio::test]
async fn answers_are_reported_with_what_they_say() {
    for (answer, expected) in [
        (
            "HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n",
            Outcome::Answered {
                status: 503,
                retry_after: Some(Duration::from_secs(7)),
                signature_error: None,
            },
        ),
        (
            "HTTP/1.1 401 No\r\nWWW-Authenticate: Signature error=\"webhook_signature_key_unknown\"\r\nContent-Length: 0\r\n\r\n",
            Outcome::Answered {
                status: 401,
                retry_after: None,
                signature_error: Some(SignatureError::KeyUnknown),
            },
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", answered(204)),
        ("NONSENSE\r\n\r\n", Outcome::Failed(FailureReason::ResponseBroken)),
    ] {
        let receiver = Receiver::start(Script::Answer(answer), "localhost").await;
        assert_eq!(send(&receiver.sender(), &receiver.url("/h")).await, expected, "{answer}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let mut elsewhere = Receiver::start(OK, "localhost").await;
    let answer =
        format!("HTTP/1.1 307 There\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", elsewhere.url("/"));
    let receiver = Receiver::start(Script::Answer(answer.leak()), "localhost").await;
    assert_eq!(send(&receiver.sender(), &receiver.url("/h")).await, answered(307));
    assert!(elsewhere.heard_nothing());
}

#[tokio::test]
async fn a_receiver_that_hangs_costs_the_deadline_and_no_more() {
    let mut receiver = Receiver::start(Script::Hang, "localhost").await;
    let started = Instant::now();
    let (sender, prepared) = (receiver.sender(), prepared(&receiver.url("/h")));
    let outcome = sender.send(&prepared, &signer(), signing_time(), Duration::from_millis(500)).await;
    assert_eq!(outcome, Outcome::Failed(FailureReason::Timeout));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(receiver.requests.recv().await.is_some());
}

#[tokio::test]
async fn a_body_that_drips_costs_the_deadline_and_the_status_counts() {
    let receiver = Receiver::start(Script::Drip, "localhost").await;
    let (sender, prepared) = (receiver.sender(), prepared(&receiver.url("/h")));
    let outcome = sender.send(&prepared, &signer(), signing_time(), Duration::from_millis(500)).await;
    assert_eq!(outcome, answered(200));
}

#[tokio::test]
async fn a_body_without_end_is_not_read_to_the_end() {
    let receiver = Receiver::start(Script::AnswerForEver, "localhost").await;
    let started = Instant::now();
    assert_eq!(send(&receiver.sender(), &receiver.url("/h")).await, answered(200));
    assert!(started.elapsed() < Duration::from_secs(10), "well before the deadline of 20 s");
}

#[tokio::test]
async fn a_certificate_must_be_trusted_and_name_the_host() {
    let mut receiver = Receiver::start(OK, "localhost").await;
    let policy = GuardPolicy { allow_private: true, ..GuardPolicy::default() };
    let trusting_nobody = Sender::new(tls_config(None).unwrap(), policy, &SenderOptions::default()).unwrap();
    let tls = Outcome::Failed(FailureReason::Tls);
    assert_eq!(send(&trusting_nobody, &receiver.url("/h")).await, tls);
    assert!(receiver.heard_nothing());
    let mut other = Receiver::start(OK, "other.example").await;
    assert_eq!(send(&other.sender(), &other.url("/h")).await, tls);
    assert!(other.heard_nothing());
}

#[tokio::test]
async fn an_address_inside_is_refused_however_it_is_named() {
    let mut receiver = Receiver::start(OK, "localhost").await;
    let strict = receiver.sender_under(GuardPolicy::default());
    let port = receiver.port;
    for host in ["127.0.0.1", "127.1", "2130706433", "[::ffff:127.0.0.1]", "[::1]", "localhost", "localhost."]
    {
        let outcome = send(&strict, &format!("https://{host}:{port}/h")).await;
        assert_eq!(outcome, Outcome::AddressRefused, "{host}");
    }
    // A name that passes, and a DNS answer that does not.
    let deny = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    let resolving =
        receiver.sender_under(GuardPolicy { allow_private: true, deny, ..GuardPolicy::default() });
    assert_eq!(send(&resolving, &receiver.url("/h")).await, Outcome::AnswerRefused);
    assert!(receiver.heard_nothing());
}

#[tokio::test]
async fn failures_of_the_network_are_told_apart() {
    let receiver = Receiver::start(Script::Close, "localhost").await;
    let sender = receiver.sender();
    let outcome = send(&sender, &receiver.url("/h")).await;
    let closed = [FailureReason::Reset, FailureReason::ResponseBroken].map(Outcome::Failed);
    assert!(closed.contains(&outcome), "{outcome:?}");
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let outcome = send(&sender, &format!("https://127.0.0.1:{nobody}/h")).await;
    assert_eq!(outcome, Outcome::Failed(FailureReason::Connect));
    // No label may have more than 63 characters, so no server has to be asked; TLS would object
    // to the name even earlier.
    let plain = receiver.sender_under(GuardPolicy { allow_http: true, ..GuardPolicy::default() });
    let nowhere = format!("http://{}.example/h", "x".repeat(64));
    assert_eq!(send(&plain, &nowhere).await, Outcome::Failed(FailureReason::Dns));
}
