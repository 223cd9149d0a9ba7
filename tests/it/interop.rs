//! The official AdCP SDKs take what we send, and we take what they send.
//!
//! A [`Peer`] is a script of `tests/interop` around one SDK, as its registry ships it: a buyer's
//! endpoint over TLS and a seller. Where no SDK is installed these tests are skipped, and say so;
//! `.ci/run` installs both.
//!
//! Where an SDK and the specification differ, the test holds the SDK to what it does today and
//! says what the specification wants.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::AUTHORIZATION;
use secrecy::SecretString;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use taskbell::task::{Authentication, CallbackUrl, OperationId, Status, TaskId, TaskType, UrlSchemes};
use taskbell::webhook::verify::{Payload, verify_hmac};
use taskbell::webhook::{
    Envelope, IdempotencyKey, KeyRing, LegacyModes, Outcome, Prepared, SignatureError, Signer,
    SigningAlgorithm, SigningKey,
};
use tokio::process::Command;
use uuid::Uuid;

use super::support::peer::{Peer, SECRET, installed, verify};
use super::support::receiver::Post;

#[tokio::test]
async fn the_python_sdk_and_we_take_each_others_webhooks() {
    let Some(python) = installed("INTEROP_PYTHON") else { return };
    let mut command = Command::new(python);
    command.args(["-W", "ignore", "tests/interop/peer.py"]);
    let ours = ours();
    let mut peer = Peer::start(command, &published(&ours)).await;

    they_take_every_body(&mut peer, &ours).await;
    they_take_every_url(&mut peer, &ours, &[URLS, ESCAPED, QUERIES].concat()).await;
    they_take_every_host(&mut peer, &ours).await;
    they_take_a_repeated_webhook_once(&mut peer, &ours).await;
    they_take_our_hmac(&mut peer, &ours, 200).await;
    they_refuse_what_is_not_ours(&mut peer, &ours).await;
    we_take_what_they_sign(&mut peer, &[URLS, QUERIES].concat()).await;
    we_take_their_hmac(&mut peer).await;
    our_bearer_header_is_theirs(&mut peer, &ours).await;

    // A number that no double holds has no canonical form (RFC 8785), so there is none to compare
    // a repeated webhook by: the SDK refuses the body.
    let mut webhook = prepared(&peer.url("/hook"));
    webhook.body = Bytes::from_static(br#"{"idempotency_key":"whk_0123456789abcdef","n":9007199254740993}"#);
    assert_eq!(peer.deliver(&webhook, &ours[0].signer).await["reason"], "payload_not_i_json");

    // The SDK signs the URL as it was registered and leaves it to its HTTP client to escape it.
    // The receiver sees only what was sent.
    for url in ESCAPED {
        assert_eq!(peer.let_them_sign("ed25519", url).await, Err(SignatureError::Invalid), "{url}");
    }
}

#[tokio::test]
async fn the_typescript_sdk_and_we_take_each_others_webhooks() {
    let Some(directory) = installed("INTEROP_NODE") else { return };
    let command = || {
        let mut command = Command::new("node");
        command.arg("tests/interop/peer.mjs").env("INTEROP_NODE", directory.canonicalize().unwrap());
        command
    };
    let ours = ours();
    // AdCP 3.2 wants keys for webhooks published as `request-signing` and has receivers take the
    // deprecated `webhook-signing` too. This SDK, which is of AdCP 3.0, takes only the latter.
    let mut jwks = published(&ours);
    let mut strict = Peer::start(command(), &jwks).await;
    let webhook = prepared(&strict.url("/hook"));
    let (outcome, heard) = strict.send(&webhook, &ours[0].signer, SystemTime::now()).await;
    assert_eq!(outcome, refused(SignatureError::ModeMismatch), "{heard}");
    for key in jwks["keys"].as_array_mut().unwrap() {
        key["adcp_use"] = "webhook-signing".into();
    }
    let mut peer = Peer::start(command(), &jwks).await;

    they_take_every_body(&mut peer, &ours).await;
    they_take_every_url(&mut peer, &ours, &[URLS, ESCAPED].concat()).await;
    they_take_every_host(&mut peer, &ours).await;
    they_take_our_hmac(&mut peer, &ours, 202).await;
    they_refuse_what_is_not_ours(&mut peer, &ours).await;
    we_take_what_they_sign(&mut peer, &[URLS, ESCAPED].concat()).await;
    we_take_their_hmac(&mut peer).await;
    our_bearer_header_is_theirs(&mut peer, &ours).await;

    // AdCP signs a query byte for byte (URL canonicalization, step 7). The SDK rewrites the
    // escapes in it, on both sides, and drops an empty one, which its HTTP client never sends.
    for url in QUERIES {
        let webhook = prepared(&peer.url(url));
        let (outcome, heard) = peer.send(&webhook, &ours[0].signer, SystemTime::now()).await;
        assert_eq!(outcome, refused(SignatureError::Invalid), "{url} {heard}");
        let signed = if *url == "/hook?" { Ok(()) } else { Err(SignatureError::Invalid) };
        assert_eq!(peer.let_them_sign("ed25519", url).await, signed, "{url}");
    }
}

async fn they_take_every_body(peer: &mut Peer, ours: &[Ours; 2]) {
    let plain = Status::ALL.map(|status| (status, "create_media_buy", None, None, None));
    let failure = Some(r#"{"code":"POLICY_VIOLATION","message":"no"}"#);
    let document = Some(r#"{"errors":[{"code":"X","message":"no"}]}"#);
    let progress = Some(r#"{"percentage":12.5,"current_step":"review"}"#);
    let detailed = [
        (Status::Completed, "get_signals", Some(r#"{"signals":[]}"#), None, None),
        (Status::Completed, "create_media_buy", Some(RESULT), Some("t\u{f6}k_0123456789, :"), Some(CONTEXT)),
        (Status::Failed, "sync_creatives", failure, None, None),
        (Status::Failed, "update_media_buy", document, None, Some("{}")),
        (Status::Working, "create_media_buy", progress, None, None),
    ];
    for (status, task_type, result, token, context) in plain.into_iter().chain(detailed) {
        for Ours { kid, signer, .. } in ours {
            let raw = |text: &str| serde_json::from_str::<Box<RawValue>>(text).unwrap();
            let (result, context) = (result.map(raw), context.map(raw));
            let mut prepared = prepared(&peer.url("/hook"));
            prepared.body = Envelope {
                idempotency_key: &prepared.key,
                operation_id: &OperationId::parse("op:1").unwrap(),
                task_id: &TaskId::parse(format!("task_{}", Uuid::new_v4())).unwrap(),
                task_type: &TaskType::parse(task_type).unwrap(),
                status,
                timestamp: SystemTime::now(),
                token: token.map(SecretString::from).as_ref(),
                result: result.as_deref(),
                context: context.as_deref(),
            }
            .render()
            .unwrap();
            let sent: Value = serde_json::from_slice(&prepared.body).unwrap();
            let heard = peer.deliver(&prepared, signer).await;
            assert_eq!(heard["status"], 200, "{sent} {heard}");
            assert_eq!(heard["sender"], *kid);
            assert_eq!(heard["payload"], sent);
        }
    }
}

async fn they_take_every_url(peer: &mut Peer, ours: &[Ours; 2], urls: &[&str]) {
    for url in urls {
        for Ours { signer, .. } in ours {
            let heard = peer.deliver(&prepared(&peer.url(url)), signer).await;
            assert_eq!(heard["status"], 200, "{url} {heard}");
        }
    }
}

/// Hosts that are not here: the request comes to the peer as it would have come to them.
async fn they_take_every_host(peer: &mut Peer, ours: &[Ours; 2]) {
    for url in [
        "https://buyer.example",
        "https://BUYER.Example.:443/hook",
        "https://b\u{fc}cher.example:8443/hook?q=\u{e9}",
        "https://[2001:DB8:0:0::1]/hook",
        "https://[2001:db8::1]:8443/hook",
        "https://198.51.100.7:444/hook",
    ] {
        let prepared = prepared(url);
        for Ours { signer, .. } in ours {
            let headers = signer.headers(&prepared, SystemTime::now()).unwrap();
            let heard = peer.post(prepared.url.target().url(), headers, &prepared.body).await;
            assert_eq!(heard["status"], 200, "{url} {heard}");
        }
    }
}

async fn they_take_a_repeated_webhook_once(peer: &mut Peer, ours: &[Ours; 2]) {
    let prepared = prepared(&peer.url("/hook"));
    for duplicate in [false, true] {
        let heard = peer.deliver(&prepared, &ours[0].signer).await;
        assert_eq!((&heard["status"], &heard["duplicate"]), (&json!(200), &json!(duplicate)));
    }
}

async fn they_take_our_hmac(peer: &mut Peer, ours: &[Ours; 2], taken: u16) {
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let mut prepared = prepared(&peer.url("/hook?x=1"));
    let other = "another secret of at least thirty-two characters";
    for (secret, now, status) in [(SECRET, now, taken), (SECRET, now - hour, 401), (other, now, 401)] {
        prepared.authentication = Some(Authentication::HmacSha256(secret.into()));
        let (outcome, heard) = peer.send(&prepared, &ours[0].signer, now).await;
        assert_eq!(outcome.status(), Some(status), "{heard}");
    }
    prepared.authentication = Some(Authentication::HmacSha256(SECRET.into()));
    let headers = ours[0].signer.headers(&prepared, now).unwrap();
    let heard = peer.post(prepared.url.target().url(), headers, &tampered(&prepared.body)).await;
    assert_eq!(heard["status"], 401, "{heard}");
}

async fn they_refuse_what_is_not_ours(peer: &mut Peer, ours: &[Ours; 2]) {
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    for Ours { kid, algorithm, signer } in ours {
        let prepared = prepared(&peer.url("/hook"));
        for (signer, now, error) in [
            (signer, now - hour, SignatureError::WindowInvalid),
            (signer, now + hour, SignatureError::WindowInvalid),
            (&Ours::new("unpublished", *algorithm).signer, now, SignatureError::KeyUnknown),
            (&Ours::new(kid, *algorithm).signer, now, SignatureError::Invalid),
        ] {
            let (outcome, heard) = peer.send(&prepared, signer, now).await;
            assert_eq!(outcome, refused(error), "{heard}");
        }
        let (here, elsewhere) = (prepared.url.target().url(), peer.url("/elsewhere").parse().unwrap());
        let (body, headers) = (&prepared.body, || signer.headers(&prepared, now).unwrap());
        let sent_before = headers();
        for (url, headers, body, error) in [
            (here, headers(), &tampered(body), Some(SignatureError::DigestMismatch)),
            (&elsewhere, headers(), body, Some(SignatureError::Invalid)),
            (here, sent_before.clone(), body, None),
            (here, sent_before, body, Some(SignatureError::Replayed)),
        ] {
            let heard = peer.post(url, headers, body).await;
            assert_eq!(SignatureError::find(heard["challenge"].as_str()), error, "{heard}");
            assert_eq!(heard["status"], if error.is_some() { 401 } else { 200 }, "{heard}");
        }
    }
}

async fn we_take_what_they_sign(peer: &mut Peer, urls: &[&str]) {
    for url in urls {
        for mode in ["ed25519", "ecdsa-p256-sha256"] {
            assert_eq!(peer.let_them_sign(mode, url).await, Ok(()), "{mode} {url}");
        }
    }
    let post = peer.let_them_send("ed25519", "/hook").await;
    let payload = Payload::parse(&post.body).unwrap();
    let result: Value = serde_json::from_str(payload.result.unwrap().get()).unwrap();
    assert_eq!(result["media_buy_id"], "mb_\u{2603}");
    let verifier = peer.verifier();
    let altered = Post { body: tampered(&post.body).into(), ..post.clone() };
    let moved = Post { target: "/elsewhere".to_owned(), ..post.clone() };
    assert_eq!(verify(&verifier, &altered), Err(SignatureError::DigestMismatch));
    assert_eq!(verify(&verifier, &moved), Err(SignatureError::Invalid));
    assert_eq!(verify(&verifier, &post), Ok(()));
    assert_eq!(verify(&verifier, &post), Err(SignatureError::Replayed));
}

async fn we_take_their_hmac(peer: &mut Peer) {
    let Post { headers, body, .. } = peer.let_them_send("HMAC-SHA256", "/hook").await;
    let (secret, now) = (SECRET.into(), SystemTime::now());
    assert_eq!(verify_hmac(&secret, &headers, &body, now), Ok(()));
    assert_eq!(verify_hmac(&secret, &headers, &tampered(&body), now), Err(SignatureError::Invalid));
}

/// No SDK's receiver looks at a Bearer token, which is for the gateway before it.
async fn our_bearer_header_is_theirs(peer: &mut Peer, ours: &[Ours; 2]) {
    let theirs = peer.let_them_send("Bearer", "/hook").await;
    let mut prepared = prepared(&peer.receiver.url("/hook"));
    prepared.authentication = Some(Authentication::Bearer(SECRET.into()));
    let headers = ours[0].signer.headers(&prepared, SystemTime::now()).unwrap();
    assert_eq!(theirs.headers[AUTHORIZATION], headers[AUTHORIZATION]);
}

/// A key of ours.
struct Ours {
    kid: &'static str,
    algorithm: SigningAlgorithm,
    signer: Signer,
}

impl Ours {
    fn new(kid: &'static str, algorithm: SigningAlgorithm) -> Self {
        let ring = KeyRing::new(vec![SigningKey::generate(algorithm, Some(kid)).unwrap()]).unwrap();
        Self { kid, algorithm, signer: Signer::new(ring, LegacyModes::default()) }
    }
}

/// A key for each algorithm, one of them with a `kid` that has to be escaped.
fn ours() -> [Ours; 2] {
    [Ours::new("a \"quoted\\ kid", SigningAlgorithm::Ed25519), Ours::new("k2", SigningAlgorithm::EcdsaP256)]
}

/// What we publish of them, in one document.
fn published(ours: &[Ours]) -> Value {
    let jwks = |ours: &Ours| ours.signer.keys().ring(None).unwrap().jwks(SystemTime::now());
    json!({"keys": ours.iter().map(|ours| jwks(ours)["keys"][0].take()).collect::<Vec<_>>()})
}

/// A webhook like any other.
fn prepared(url: &str) -> Prepared {
    let key = IdempotencyKey::of_row(Uuid::new_v4());
    let body = json!({
        "idempotency_key": key.as_str(), "operation_id": "op_1", "task_id": key.as_str(),
        "task_type": "create_media_buy", "status": "completed", "timestamp": "2026-04-18T14:00:00Z",
    });
    Prepared {
        url: CallbackUrl::parse(url, UrlSchemes::HttpsOnly).unwrap(),
        key,
        body: Bytes::from(body.to_string()),
        authentication: None,
        signing_scope: None,
    }
}

fn refused(error: SignatureError) -> Outcome {
    Outcome::Answered { status: 401, retry_after: None, signature_error: Some(error) }
}

/// The same JSON in other bytes.
fn tampered(body: &[u8]) -> Bytes {
    [body, b" "].concat().into()
}

/// What comes after the host in URLs that everybody reads alike.
const URLS: &[&str] = &[
    "",
    "/hook",
    "?x=1",
    "/a/../b//c/./d",
    "/%7euser/%e2%98%83/%2F",
    "/a/%2e%2e/b",
    "/p?b=2&a=%27+",
    "/p#f",
];
/// URLs that cannot be sent as they are written.
const ESCAPED: &[&str] = &["/\u{e9}", "/\"{}|^`", "/p?q=\u{e9}\"<>'"];
/// Queries that another spelling would mean as much as.
const QUERIES: &[&str] = &["/hook?", "/p?c=%7e", "/p?c=%e9"];

const RESULT: &str = "{\"note\":\"Zusage f\u{fc}r 25\u{a0}% \u{2014} \u{2603} \u{1f514}\\u0007\",\"budget\":1.50,\"end\":null}";
const CONTEXT: &str = "{\"session\":\"s\u{e9}ance\",\"steps\":[1,2,{\"n\":-0.5e-3}]}";
