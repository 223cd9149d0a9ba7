//! Receivers that would rather harm than answer: each costs one attempt no more than its
//! deadline, a bounded number of bytes and its connection.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use taskbell::webhook::{FailureReason, Outcome};

use crate::support::scripted::{Receiver, Script, answered, send, send_within};

const BROKEN: Outcome = Outcome::Failed(FailureReason::ResponseBroken);
const TIMEOUT: Outcome = Outcome::Failed(FailureReason::Timeout);
const TLS: Outcome = Outcome::Failed(FailureReason::Tls);

/// Makes one attempt with a short deadline. Gives the outcome, and how much of its answer the
/// receiver got rid of until the connection was closed under it.
async fn attempt(script: Script) -> (Outcome, usize) {
    let mut receiver = Receiver::start(script, "localhost").await;
    let (sender, url) = (receiver.sender(), receiver.url("/h"));
    let attempt = async {
        let outcome = send_within(&sender, &url, Duration::from_millis(500)).await;
        (outcome, receiver.ended.recv().await.unwrap())
    };
    tokio::time::timeout(Duration::from_secs(60), attempt).await.expect("the connection is closed")
}

/// For answers that go on for ever: the outcome, while most of the answer is never read.
async fn check_endless(what: &str, start: &str, again: &'static str, expected: Outcome) {
    let (outcome, written) = attempt(Script::Repeat(start.to_owned().leak(), again)).await;
    assert_eq!(outcome, expected, "{what}");
    assert!(written < MOST, "{what}: {written} bytes were taken");
}

/// What may be under way in both sockets' buffers, generously.
const MOST: usize = 32 << 20;

#[tokio::test]
async fn a_head_without_end_is_given_up() {
    let status = "HTTP/1.1 200 OK\r\n";
    check_endless("fields", status, "X-A: b\r\n", BROKEN).await;
    check_endless("one field", "HTTP/1.1 200 OK\r\nX-A: ", "a", BROKEN).await;
    check_endless("a field's name", status, "a", BROKEN).await;
    check_endless("a reason", "HTTP/1.1 200 ", "a", BROKEN).await;
    check_endless("empty lines", "", "\r\n", BROKEN).await;
    check_endless("folded lines", "HTTP/1.1 200 OK\r\nX-A: b\r\n", " c\r\n", BROKEN).await;
    check_endless("zeros", "", "\0", BROKEN).await;
}

#[tokio::test]
async fn a_body_without_end_is_cut_off_and_the_status_counts() {
    let endless = async |what, start: &str, again| check_endless(what, start, again, answered(200)).await;
    endless("a terabyte", "HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n", "x").await;
    endless("until closed", "HTTP/1.1 200 OK\r\n\r\n", "x").await;
    endless("chunks", CHUNKED, "1\r\nx\r\n").await;
    endless("one chunk", &format!("{CHUNKED}ffffffffffffffff\r\n"), "x").await;
    endless("a chunk's size", CHUNKED, "0").await;
    endless("a chunk's extension", &format!("{CHUNKED}1;"), "a").await;
    endless("trailers", &format!("{CHUNKED}0\r\n"), "X-A: b\r\n").await;
    endless("a trailer", &format!("{CHUNKED}0\r\nX-A: "), "a").await;
}

#[tokio::test]
async fn interim_answers_without_end_cost_the_deadline() {
    for interim in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"] {
        // They are dropped as they come, so their number is not limited, but their time is.
        let (outcome, _) = attempt(Script::Repeat("", interim)).await;
        assert_eq!(outcome, TIMEOUT, "{interim}");
    }
}

#[tokio::test]
async fn an_answer_that_dribbles_costs_the_deadline() {
    for (start, again) in [
        ("", "H"),
        ("HTTP/1.1 200 OK\r\n", "X: y\r\n"),
        ("HTTP/1.1 200 OK\r\nX-A: ", "a"),
        ("", "HTTP/1.1 100 Continue\r\n\r\n"),
    ] {
        let (outcome, _) = attempt(Script::Drip(start, again)).await;
        assert!([TIMEOUT, BROKEN].contains(&outcome), "{start}{again}: {outcome:?}");
    }
    assert_eq!(attempt(Script::Drip(CHUNKED, "1\r\nx\r\n")).await.0, answered(200));
}

#[tokio::test]
async fn what_is_no_tls_of_today_is_refused_in_the_handshake() {
    // A ServerHello of TLS 1.0, 1.1 and SSL 3.0 with a cipher suite of the time.
    const HELLO_1_0: &[u8] = &hello(1);
    const HELLO_1_1: &[u8] = &hello(2);
    const HELLO_3_0: &[u8] = &hello(0);
    for (what, bytes) in [
        ("TLS 1.0", HELLO_1_0),
        ("TLS 1.1", HELLO_1_1),
        ("SSL 3.0", HELLO_3_0),
        ("an alert: protocol_version", &[21, 3, 1, 0, 2, 2, 70][..]),
        ("an alert: internal_error", &[21, 3, 3, 0, 2, 2, 80]),
        ("plain HTTP", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("another protocol", b"SSH-2.0-OpenSSH_9.6\r\n"),
        ("zeros", &[0; 64]),
        ("a record that is too long", &[22, 3, 3, 0xff, 0xff, 0, 0, 0, 0]),
        ("another record type", &[99, 3, 3, 0, 1, 0]),
    ] {
        assert_eq!(attempt(Script::InsteadOfTls(bytes)).await.0, TLS, "{what}");
    }
    assert_eq!(attempt(Script::InsteadOfTls(b"")).await.0, TIMEOUT, "no handshake");
    assert_eq!(attempt(Script::InsteadOfTls(&[22, 3, 3])).await.0, TIMEOUT, "half a record");
    assert_eq!(attempt(Script::CloseBeforeTls).await.0, Outcome::Failed(FailureReason::Connect));
}

const fn hello(minor: u8) -> [u8; 47] {
    let mut bytes = [7; 47];
    let head = [22, 3, minor, 0, 42, 2, 0, 0, 38, 3, minor];
    let mut at = 0;
    while at < head.len() {
        bytes[at] = head[at];
        at += 1;
    }
    // No session, TLS_RSA_WITH_AES_128_CBC_SHA, no compression.
    [bytes[43], bytes[44], bytes[45], bytes[46]] = [0, 0, 0x2f, 0];
    bytes
}

#[tokio::test]
async fn lies_about_the_length_change_no_status() {
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", answered(200)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nlonger", answered(200)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 410 Gone\r\n\r\n", answered(200)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nshort", answered(200)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nshort", BROKEN),
        ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", BROKEN),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n", BROKEN),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            answered(200),
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nNO\r\n", answered(200)),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nshort", answered(204)),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nshort", answered(304)),
        ("HTTP/1.0 200 OK\r\n\r\n", answered(200)),
        ("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", answered(200)),
        ("HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n", answered(999)),
        ("HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n", BROKEN),
        ("HTTP/1.1 20 No\r\nContent-Length: 0\r\n\r\n", BROKEN),
        ("HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n", BROKEN),
        ("HTTP/1.1 200 OK\r\nX-A : b\r\nContent-Length: 0\r\n\r\n", BROKEN),
        ("HTTP/1.1 200 OK\r\nX-A: b\0\r\nContent-Length: 0\r\n\r\n", BROKEN),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BROKEN),
        ("<html>", BROKEN),
    ] {
        let outcome = attempt(Script::AnswerAndClose(answer.as_bytes())).await.0;
        assert_eq!(outcome, expected, "{answer}");
    }
}

#[tokio::test]
async fn an_upgrade_that_nobody_asked_for_is_no_delivery() {
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (outcome, _) = attempt(Script::AnswerAndClose(answer)).await;
    assert_eq!(outcome, answered(101));
    assert!(outcome.reason().is_some());
}

#[tokio::test]
async fn an_answer_that_comes_before_its_request_is_not_the_next_ones() {
    // Both answers are on the wire before the second request is written.
    let script = Script::Answer(
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n",
    );
    let mut receiver = Receiver::start(script, "localhost").await;
    let sender = receiver.sender();
    for connection in 1..=3 {
        assert_eq!(send(&sender, &receiver.url("/h")).await, answered(200));
        assert_eq!(receiver.requests.recv().await.unwrap().connection, connection);
    }
}

#[tokio::test]
async fn a_compressed_body_is_not_unpacked() {
    // Unpacked, it would be more than is ever read, and the connection would be given up.
    let body = STANDARD.decode(BOMB).unwrap();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = [head.as_bytes(), &body].concat();
    let mut receiver = Receiver::start(Script::Answer(answer.leak()), "localhost").await;
    let sender = receiver.sender();
    for _ in 0..3 {
        assert_eq!(send(&sender, &receiver.url("/h")).await, answered(200));
        assert_eq!(receiver.requests.recv().await.unwrap().connection, 1);
    }
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// 300,000 zeros in gzip.
const BOMB: &str = "H4sIAAAAAAACA+3BAQ0AAADCoPdPbQ8HFAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA/Bj74rL24JMEAA==";
