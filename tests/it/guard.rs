//! The guard against buyers who want to reach inside: a table of hostile URLs, and names whose
//! answers are not what they were.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::dns::Resolve;
use serde_json::json;
use taskbell::daemon::database::tls_config;
use taskbell::task::{Registration, UrlSchemes};
use taskbell::webhook::{FailureReason, GuardPolicy, Outcome, Resolver, Sender, SenderOptions};
use tokio::process::Command;
use tokio::sync::{Semaphore, mpsc};
use url::Host;

use crate::support::Shared;
use crate::support::scripted::{OK, Receiver, Script, answered, send, send_within};

#[derive(serde::Deserialize)]
struct Table {
    urls: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    url: String,
    trick: String,
    refused_at: Option<Stage>,
    /// What DNS says, where it is asked.
    #[serde(default)]
    answer: Vec<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    Registration,
    Guard,
    Dns,
}

fn table() -> Vec<Case> {
    let table: Table = serde_json::from_str(include_str!("../vectors/hostile-urls.json")).unwrap();
    table.urls
}

/// DNS as a test wants it.
#[derive(Clone, Default)]
struct Dns {
    answer: Shared<Vec<IpAddr>>,
    asked: Shared<Vec<String>>,
}

impl Dns {
    fn answers(&self, answer: &[IpAddr]) {
        *self.answer.lock().unwrap() = answer.to_vec();
    }

    /// The names asked for since this was last called.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn resolver(&self, policy: GuardPolicy) -> Resolver {
        let this = self.clone();
        Resolver::new(policy, 4).with_lookup(move |name| {
            this.asked.lock().unwrap().push(name);
            let answer = this.answer.lock().unwrap().clone();
            async { Ok(answer) }
        })
    }
}

/// Something inside that nobody may knock at.
struct Doorway(TcpListener);

impl Doorway {
    fn open(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn nobody_came(&self) -> bool {
        self.0.accept().is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

/// The loopback may be called, but for one address of it that stands for the inside.
fn loopback_but(inside: &str) -> GuardPolicy {
    GuardPolicy {
        allow_private: true,
        deny: vec![format!("{inside}/32").parse().unwrap()],
        ..GuardPolicy::default()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Where the way from the buyer's request to a connection ends for this URL.
async fn refused_at(case: &Case, dns: &Dns) -> Option<Stage> {
    let config = json!({ "url": case.url, "operation_id": "op_1" });
    let Ok(registration) = Registration::parse(&config, UrlSchemes::HttpsOnly) else {
        return Some(Stage::Registration);
    };
    let url = registration.url.target().url();
    if GuardPolicy::default().check_url(url).is_err() {
        return Some(Stage::Guard);
    }
    let Some(Host::Domain(name)) = url.host() else { return None };
    dns.answers(&case.answer);
    let answer = dns.resolver(GuardPolicy::default()).resolve(name.parse().unwrap()).await;
    answer.is_err().then_some(Stage::Dns)
}

#[tokio::test]
async fn every_url_of_the_table_is_refused_where_it_says_and_the_benign_ones_nowhere() {
    let dns = Dns::default();
    let cases = table();
    let mut wrong = Vec::new();
    for case in &cases {
        let found = refused_at(case, &dns).await;
        if found != case.refused_at {
            wrong.push(format!("{}: {:?} is refused at {found:?}", case.trick, case.url));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let refused = cases.iter().filter(|case| case.refused_at.is_some()).count();
    assert!(refused > 300 && cases.len() - refused > 30);
}

#[tokio::test]
async fn the_sender_refuses_what_the_table_says_and_asks_dns_only_about_names_that_pass() {
    let dns = Dns::default();
    let resolver = dns.resolver(GuardPolicy::default());
    let sender =
        Sender::with_resolver(tls_config(None).unwrap(), resolver, &SenderOptions::default()).unwrap();
    for case in table() {
        dns.answers(&case.answer);
        let (expected, lookups) = match case.refused_at {
            Some(Stage::Guard) => (Outcome::AddressRefused, 0),
            Some(Stage::Dns) if case.answer.is_empty() => (Outcome::Failed(FailureReason::Dns), 1),
            Some(Stage::Dns) => (Outcome::AnswerRefused, 1),
            Some(Stage::Registration) | None => continue,
        };
        assert_eq!(send(&sender, &case.url).await, expected, "{}: {:?}", case.trick, case.url);
        assert_eq!(dns.asked().len(), lookups, "{}: {:?}", case.trick, case.url);
    }
}

#[tokio::test]
async fn a_connection_goes_to_the_address_that_was_checked_whatever_dns_says_next() {
    let closing =
        Script::AnswerAndClose(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    let mut receiver = Receiver::start(closing, "buyer.example").await;
    let inside = Doorway::open(&format!("127.0.0.2:{}", receiver.port));
    let answers = Arc::new(Mutex::new(vec![ip("127.0.0.2"), ip("127.0.0.1")]));
    let asked = Arc::new(AtomicUsize::new(0));
    let (left, count) = (answers.clone(), asked.clone());
    let resolver = Resolver::new(loopback_but("127.0.0.2"), 4).with_lookup(move |name| {
        assert_eq!(name, "buyer.example");
        count.fetch_add(1, Ordering::SeqCst);
        let answer = left.lock().unwrap().pop();
        async move { Ok(answer.into_iter().collect()) }
    });
    let sender = receiver.sender_resolving(resolver);
    let url = format!("https://buyer.example:{}/h", receiver.port);

    assert_eq!(send(&sender, &url).await, answered(200));
    let request = receiver.requests.recv().await.unwrap();
    assert_eq!(request.headers["host"], format!("buyer.example:{}", receiver.port));
    assert_eq!(asked.load(Ordering::SeqCst), 1, "one lookup for one connection");

    // The name has moved inside: the next connection asks again, and is refused.
    assert_eq!(send(&sender, &url).await, Outcome::AnswerRefused);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert_eq!(receiver.connections(), 1);
    assert!(inside.nobody_came());
}

#[tokio::test]
async fn a_connection_that_is_kept_is_not_looked_up_again() {
    let receiver = Receiver::start(OK, "buyer.example").await;
    let dns = Dns::default();
    dns.answers(&[ip("127.0.0.1")]);
    let sender = receiver.sender_resolving(dns.resolver(loopback_but("127.0.0.2")));
    let url = format!("https://buyer.example:{}/h", receiver.port);
    for _ in 0..3 {
        assert_eq!(send(&sender, &url).await, answered(200));
        dns.answers(&[ip("127.0.0.2")]);
    }
    assert_eq!((dns.asked(), receiver.connections()), (vec!["buyer.example".to_owned()], 1));
}

#[tokio::test]
async fn a_name_with_one_address_inside_is_not_called_at_its_other_one() {
    let receiver = Receiver::start(OK, "buyer.example").await;
    let dns = Dns::default();
    let sender = receiver.sender_resolving(dns.resolver(loopback_but("127.0.0.2")));
    let url = format!("https://buyer.example:{}/h", receiver.port);
    for answer in [["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"]] {
        dns.answers(&answer.map(ip));
        assert_eq!(send(&sender, &url).await, Outcome::AnswerRefused);
    }
    assert_eq!(receiver.connections(), 0);
    dns.answers(&[ip("127.0.0.1")]);
    assert_eq!(send(&sender, &url).await, answered(200));
}

#[tokio::test]
async fn a_redirect_inside_is_an_answer_and_no_way_in() {
    let inside = Doorway::open("127.0.0.1:0");
    let there = inside.address();
    for status in [301, 302, 303, 307, 308] {
        let answer =
            format!("HTTP/1.1 {status} There\r\nLocation: https://{there}/\r\nContent-Length: 0\r\n\r\n");
        let receiver = Receiver::start(Script::Answer(answer.leak().as_bytes()), "localhost").await;
        assert_eq!(send(&receiver.sender(), &receiver.url("/h")).await, answered(status));
    }
    assert!(inside.nobody_came());
}

/// Lookups that begin and do not end until they are let go.
struct Hanging {
    resolver: Resolver,
    began: mpsc::UnboundedReceiver<()>,
    let_go: Arc<Semaphore>,
}

fn hanging(limit: usize) -> Hanging {
    let (begin, began) = mpsc::unbounded_channel();
    let let_go = Arc::new(Semaphore::new(0));
    let gate = let_go.clone();
    let resolver = Resolver::new(GuardPolicy::default(), limit).with_lookup(move |_| {
        begin.send(()).unwrap();
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            Ok(vec![ip("127.0.0.1")])
        }
    });
    Hanging { resolver, began, let_go }
}

fn sender_of(resolver: Resolver) -> Sender {
    Sender::with_resolver(tls_config(None).unwrap(), resolver, &SenderOptions::default()).unwrap()
}

const TIMEOUT: Outcome = Outcome::Failed(FailureReason::Timeout);

#[tokio::test(start_paused = true)]
async fn a_lookup_that_hangs_ends_the_attempt_at_its_deadline_and_keeps_its_place() {
    let Hanging { resolver, mut began, let_go } = hanging(1);
    let sender = sender_of(resolver);
    let attempt = async |host: &str| {
        let start = tokio::time::Instant::now();
        let outcome = send_within(&sender, &format!("https://{host}/"), Duration::from_secs(3)).await;
        (outcome, start.elapsed())
    };
    let (outcome, took) = attempt("a.example").await;
    assert_eq!(outcome, TIMEOUT);
    assert_eq!(took.as_secs(), 3, "by the paused clock");
    assert!(began.try_recv().is_ok());
    // The thread of the first lookup is still busy: the second one does not begin.
    assert_eq!(attempt("b.example").await.0, TIMEOUT);
    assert!(began.try_recv().is_err());
    // Both lookups end, and the second attempt at b.example gets its answer.
    let_go.add_permits(2);
    assert_eq!(attempt("b.example").await.0, Outcome::AnswerRefused);
    assert!(began.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn many_lookups_that_hang_never_exceed_their_number() {
    let Hanging { resolver, mut began, let_go: _never } = hanging(4);
    let sender = sender_of(resolver);
    let attempts = (0..50)
        .map(async |n| send_within(&sender, &format!("https://h{n}.example/"), Duration::from_secs(3)).await);
    for outcome in futures_util::future::join_all(attempts).await {
        assert_eq!(outcome, TIMEOUT);
    }
    let mut lookups = 0;
    while began.try_recv().is_ok() {
        lookups += 1;
    }
    assert_eq!(lookups, 4);
}

#[tokio::test]
async fn a_proxy_in_the_environment_is_ignored() {
    let mut receiver = Receiver::start(OK, "localhost").await;
    let proxy = Doorway::open("127.0.0.1:0");
    let address = format!("http://{}", proxy.address());
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key.jwk");
    let taskbell = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskbell"));
        command.env_clear().args(arguments).kill_on_drop(true).stdin(Stdio::null());
        command
    };
    let made = taskbell(&["keys", "generate", key.to_str().unwrap()]).output().await.unwrap();
    assert!(made.status.success());
    let mut ring = taskbell(&["ring", &receiver.url("/h")]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        ring.env(name, &address).env(name.to_lowercase(), &address);
    }
    ring.env("TASKBELL_SIGNING__KEY_FILES", &key)
        .env("TASKBELL_HTTP__CA_FILE", receiver.root.path())
        .env("TASKBELL_GUARD__ALLOW_PRIVATE", "true");
    let said = ring.output().await.unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(receiver.requests.recv().await.unwrap().line, "POST /h HTTP/1.1");
    assert!(proxy.nobody_came());
}
