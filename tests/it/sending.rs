//! The sender against a scripted receiver: real sockets, real TLS, a certificate authority of
//! the test's own.

use std::time::{Duration, Instant};

use taskbell::daemon::database::tls_config;
use taskbell::webhook::verify::{Arrived, ReplayWindow, Revocation, Verifier, VerifyingKeys};
use taskbell::webhook::{FailureReason, GuardPolicy, Outcome, Sender, SenderOptions, SignatureError};
use tokio::net::TcpListener;

use crate::support::scripted::{OK, Receiver, Script, answered, prepared, send, signer, signing_time, trace};

/// A body that never ends.
const FOR_EVER: Script =
    Script::Repeat("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "10\r\n0123456789abcdef\r\n");

/// A long body, a byte every so often.
const DRIP: Script = Script::Drip("HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n", "x");

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
            sender.send(&prepared, &signer, trace(), now, Duration::from_secs(20)).await,
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
        let receiver = Receiver::start(Script::Answer(answer.as_bytes()), "localhost").await;
        assert_eq!(send(&receiver.sender(), &receiver.url("/h")).await, expected, "{answer}");
    }
}

#[tokio::test]
async fn a_receiver_that_hangs_costs_the_deadline_and_no_more() {
    let mut receiver = Receiver::start(Script::Hang, "localhost").await;
    let started = Instant::now();
    let (sender, prepared) = (receiver.sender(), prepared(&receiver.url("/h")));
    let outcome =
        sender.send(&prepared, &signer(), trace(), signing_time(), Duration::from_millis(500)).await;
    assert_eq!(outcome, Outcome::Failed(FailureReason::Timeout));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(receiver.requests.recv().await.is_some());
}

#[tokio::test]
async fn a_body_that_drips_costs_the_deadline_and_the_status_counts() {
    let receiver = Receiver::start(DRIP, "localhost").await;
    let (sender, prepared) = (receiver.sender(), prepared(&receiver.url("/h")));
    let outcome =
        sender.send(&prepared, &signer(), trace(), signing_time(), Duration::from_millis(500)).await;
    assert_eq!(outcome, answered(200));
}

#[tokio::test]
async fn a_body_without_end_is_not_read_to_the_end() {
    let receiver = Receiver::start(FOR_EVER, "localhost").await;
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
    let receiver = Receiver::start(Script::AnswerAndClose(b""), "localhost").await;
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
