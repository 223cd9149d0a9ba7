//! A process around one of AdCP's SDKs: a buyer's endpoint over TLS, and a seller.

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{HOST, HeaderMap};
use serde_json::{Value, json};
use taskbell::daemon::database::tls_config;
use taskbell::webhook::verify::{Arrived, ReplayWindow, Revocation, Verifier, VerifyingKeys};
use taskbell::webhook::{GuardPolicy, Outcome, Prepared, Sender, SenderOptions, SignatureError, Signer};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use url::{Position, Url};

use super::receiver::{Post, Receiver};
use super::scripted::trace;
use super::tls::Identity;

/// One SDK, in a process that ends with this value.
pub struct Peer {
    port: u16,
    /// What its callers must trust.
    pub certificate: tempfile::NamedTempFile,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    _process: Child,
    /// Delivers to the SDK's endpoint.
    sender: Sender,
    /// Posts there whatever it is given.
    client: reqwest::Client,
    /// Where the SDK delivers to.
    pub receiver: Receiver,
    /// The keys with which the SDK signs.
    jwks: String,
}

impl Peer {
    /// Starts a script whose endpoint trusts `jwks`.
    pub async fn start(mut command: Command, jwks: &Value) -> Self {
        let receiver = Receiver::start().await;
        let mut process = command
            // What the HTTP clients of Python and of Node trust.
            .env("SSL_CERT_FILE", receiver.ca_file.path())
            .env("NODE_EXTRA_CA_CERTS", receiver.ca_file.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let identity = Identity::new();
        let (certificate, key) = (identity.certificate_file(), identity.key_file());
        let tls = || tls_config(Some(certificate.path())).unwrap();
        let policy = GuardPolicy { allow_private: true, ..GuardPolicy::default() };
        let (sender, client) = (
            Sender::new(tls(), policy, &SenderOptions::default()).unwrap(),
            reqwest::Client::builder().tls_backend_preconfigured(tls()).no_proxy().build().unwrap(),
        );
        let path = certificate.path().to_owned();
        let mut peer = Self {
            port: 0,
            certificate,
            stdin: process.stdin.take().unwrap(),
            stdout: BufReader::new(process.stdout.take().unwrap()).lines(),
            _process: process,
            sender,
            client,
            receiver,
            jwks: String::new(),
        };
        peer.tell(json!({
            "certificate": path, "key": key.path(), "jwks": jwks, "secret": SECRET,
        }))
        .await;
        let started = peer.hear().await;
        peer.port = started["port"].as_u64().unwrap().try_into().unwrap();
        peer.jwks = started["jwks"].to_string();
        peer
    }

    pub fn url(&self, rest: &str) -> String {
        format!("https://localhost:{}{rest}", self.port)
    }

    pub async fn tell(&mut self, line: Value) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// What became of the next webhook that arrived.
    pub async fn hear(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.stdout.next_line()).await.expect("the peer in time");
        let line = line.unwrap().expect("a line before the peer ends");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the peer said: {line}"))
    }

    /// Makes one attempt: what we see of it, and what the SDK makes of it.
    pub async fn send(&mut self, prepared: &Prepared, signer: &Signer, now: SystemTime) -> (Outcome, Value) {
        let outcome = self.sender.send(prepared, signer, trace(), now, Duration::from_secs(20)).await;
        assert!(outcome.status().is_some(), "{outcome:?}");
        (outcome, self.hear().await)
    }

    pub async fn deliver(&mut self, prepared: &Prepared, signer: &Signer) -> Value {
        self.send(prepared, signer, SystemTime::now()).await.1
    }

    /// Posts to the SDK's endpoint as if it were at `url`.
    pub async fn post(&mut self, url: &Url, headers: HeaderMap, body: &Bytes) -> Value {
        let mut here = url.clone();
        here.set_host(Some("localhost")).unwrap();
        here.set_port(Some(self.port)).unwrap();
        let host = &url[Position::BeforeHost..Position::AfterPort];
        let request = self.client.post(here).headers(headers).header(HOST, host).body(body.clone());
        request.send().await.unwrap();
        self.hear().await
    }

    /// Has the SDK send a webhook to our receiver.
    pub async fn let_them_send(&mut self, mode: &str, rest: &str) -> Post {
        let url = self.receiver.url(rest);
        self.tell(json!({"mode": mode, "url": url, "credentials": SECRET})).await;
        let answer = self.hear().await;
        assert_eq!(answer["status"], 200, "{answer}");
        self.receiver.posts().pop().unwrap()
    }

    pub async fn let_them_sign(&mut self, mode: &str, rest: &str) -> Result<(), SignatureError> {
        let post = self.let_them_send(mode, rest).await;
        verify(&self.verifier(), &post)
    }

    pub fn verifier(&self) -> Verifier {
        Verifier::new(VerifyingKeys::parse(&self.jwks).unwrap(), Revocation::default(), ReplayWindow::new(10))
    }
}

pub fn verify(verifier: &Verifier, post: &Post) -> Result<(), SignatureError> {
    let url = format!("https://{}{}", post.headers["host"].to_str().unwrap(), post.target);
    let arrived = Arrived { method: "POST", url: &url, headers: &post.headers, body: &post.body };
    verifier.verify(arrived, SystemTime::now()).map(drop)
}

/// What an environment variable names, or `None` where the test cannot run.
pub fn installed(variable: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    assert!(std::env::var("INTEROP").as_deref() != Ok("required"), "{variable} is not set");
    // Past the capture of a test's output.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {variable} is not set; .ci/run shows what it should name");
    None
}

/// Importing the Python SDK alone takes 20 s on a small machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// With which both sides sign where a buyer has chosen a shared secret.
pub const SECRET: &str = "a secret of at least thirty-two characters";
