//! What must hold for every input, stated once: the fuzz targets (whose library this file is) and
//! the property tests both call these functions, which panic when something does not hold.
//!
//! What is expected is worked out here anew and not with the code under test: address ranges by
//! the standard library's predicates, duplicate keys by a parser that counts them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::Value;
use serde_json::value::RawValue;
use taskbell::task::{CallbackUrl, OperationId, Registration, Status, Target, TaskId, TaskType, UrlSchemes};
use taskbell::webhook::verify::{Arrived, ReplayWindow, Revocation, Verifier, VerifyingKeys};
use taskbell::webhook::{
    Envelope, GuardPolicy, IdempotencyKey, KeyRing, LegacyModes, Nonce, Prepared, Signer, SigningKey,
    Unsendable,
};
use url::{Host, Url};

/// A URL that can be signed is one that the client can send, the receiver sees what was signed,
/// and what the guard lets through is no address inside.
pub fn url(text: &str) {
    let Ok(target) = Target::parse(text) else {
        assert!(CallbackUrl::parse(text, UrlSchemes::AllowHttp).is_err(), "registered, but not callable");
        return;
    };
    let arrived = as_it_arrives(target.url());
    if let Ok(url) = CallbackUrl::parse(text, UrlSchemes::AllowHttp) {
        assert_eq!(url.target(), &target);
        let prepared = prepared(url);
        let headers = SIGNER.headers(&prepared, now()).expect("signing");
        let arrived = Arrived { method: "POST", url: &arrived, headers: &headers, body: &prepared.body };
        assert_eq!(verifier().verify(arrived, now()).as_deref(), Ok("k1"), "the receiver sees another URL");
    }
    for policy in [GuardPolicy::default(), GuardPolicy { allow_http: true, ..GuardPolicy::default() }] {
        if policy.check_url(target.url()).is_err() {
            continue;
        }
        assert!(target.url().scheme() == "https" || policy.allow_http);
        match target.url().host() {
            Some(Host::Ipv4(ip)) => assert!(!is_inside_v4(ip), "{ip}"),
            Some(Host::Ipv6(ip)) => assert!(!is_inside_v6(ip), "{ip}"),
            Some(Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                assert!(name.parse::<IpAddr>().is_err(), "an address that nobody checked");
                assert!(name != "localhost" && !name.ends_with(".localhost"));
                assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
            }
            None => panic!("no host"),
        }
    }
}

/// An accepted registration says what the buyer said, and is accepted again from the database.
pub fn registration(text: &str) {
    let Ok(config) = serde_json::from_str::<Value>(text) else { return };
    let Ok(accepted) = Registration::parse(&config, UrlSchemes::HttpsOnly) else { return };
    let kept = accepted.to_config();
    for (member, value) in kept.as_object().expect("an object") {
        assert_eq!(&config[member], value, "kept as the buyer wrote it");
    }
    let again = Registration::parse(&kept, UrlSchemes::HttpsOnly).expect("accepted again");
    assert_eq!(again.to_config(), kept);
    assert_eq!(again.url.target(), accepted.url.target());
    assert!(again.url.as_str().chars().count() <= CallbackUrl::MAX_CHARS);
}

/// A rendered body is one JSON object without duplicate keys that has the documents byte for
/// byte, but for white space; and what is refused deserves it.
pub fn envelope(failed: bool, result: &str, context: &str) {
    let raw = |text: &str| RawValue::from_string(text.to_owned());
    let (Ok(result), Ok(context)) = (raw(result), raw(context)) else { return };
    let envelope = Envelope {
        idempotency_key: &key(),
        operation_id: &OperationId::parse("op_1").expect("an id"),
        task_id: &TaskId::parse("task_1").expect("an id"),
        task_type: &TaskType::parse("create_media_buy").expect("a type"),
        status: if failed { Status::Failed } else { Status::Completed },
        timestamp: now(),
        token: None,
        result: Some(&result),
        context: Some(&context),
    };
    let body = match envelope.render() {
        Ok(body) => String::from_utf8(body.to_vec()).expect("UTF-8"),
        Err(refused) => {
            let deserved = match refused {
                Unsendable::DuplicateKey { member: "result" } => has_duplicates(result.get()) != Some(false),
                Unsendable::DuplicateKey { .. } => has_duplicates(context.get()) != Some(false),
                Unsendable::Document { member: "context", .. } if !context.get().starts_with('{') => true,
                // Too deep, or a key that is no text: no ordinary parser takes those either.
                Unsendable::Document { .. } => [&result, &context]
                    .iter()
                    .any(|document| serde_json::from_str::<Value>(document.get()).is_err()),
                _ => false,
            };
            assert!(deserved, "refused for nothing: {refused}");
            return;
        }
    };
    #[derive(serde::Deserialize)]
    struct Body<'a> {
        status: &'a str,
        #[serde(borrow)]
        result: Option<&'a RawValue>,
        #[serde(borrow)]
        context: Option<&'a RawValue>,
    }
    let read: Body<'_> = serde_json::from_str(&body).expect("JSON");
    assert_eq!(read.status, if failed { "failed" } else { "completed" });
    assert_ne!(has_duplicates(&body), Some(true), "{body}");
    match (read.result.map(RawValue::get), compact(result.get())) {
        (None, document) => assert_eq!(document, "null"),
        (Some(sent), document) if !failed => assert_eq!(sent, document),
        (Some(sent), document) => {
            let wrapped = format!(r#"{{"status":"failed","adcp_error":{document},"errors":[{document}]}}"#);
            assert!(sent == document || sent == wrapped, "{sent}");
        }
    }
    assert_eq!(read.context.map_or("null", RawValue::get), compact(context.get()));
}

/// A request that was tampered with is refused, unless nothing that counts was changed. Each
/// edit cuts some characters out of the signed request's text and pastes others.
pub fn verification(edits: &[(u16, u8, String)]) {
    let mut fields: Vec<char> = SIGNED.join(SEPARATOR).chars().collect();
    for (at, cut, paste) in edits {
        let start = usize::from(*at) % (fields.len() + 1);
        let end = fields.len().min(start + usize::from(*cut));
        fields.splice(start..end, paste.chars());
    }
    let tampered: String = fields.into_iter().collect();
    let fields: Vec<&str> = tampered.split(SEPARATOR).collect();
    let [method, url, input, signature, digest, content_type, body] = fields[..] else { return };
    let mut headers = HeaderMap::new();
    for (name, text) in HEADERS.into_iter().zip([input, signature, digest, content_type]) {
        let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) else { return };
        headers.insert(HeaderName::from_static(name), value);
    }
    let arrived = Arrived { method, url, headers: &headers, body: body.as_bytes() };
    let verifier = verifier();
    if verifier.verify(arrived, now()).is_err() {
        return;
    }
    assert_eq!((method, content_type.trim(), body), (&SIGNED[0][..], &SIGNED[5][..], &SIGNED[6][..]));
    assert_eq!(Target::parse(url).expect("a URL").uri(), SIGNED[1]);
    assert!(input.contains(&SIGNED[2]) && signature.contains(&SIGNED[3]), "{input} {signature}");
    assert!(verifier.verify(arrived, now()).is_err(), "accepted twice");
}

/// The URL that a receiver puts together from what an HTTP/1.1 client writes.
fn as_it_arrives(url: &Url) -> String {
    let uri: hyper::Uri = url.as_str().parse().expect("the client can send it");
    let host = uri.authority().expect("a host");
    let target = uri.path_and_query().expect("a request target");
    format!("{}://{host}{target}", url.scheme())
}

fn is_inside_v4(ip: Ipv4Addr) -> bool {
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_broadcast()
        || ip.is_documentation()
        || ip.is_unspecified()
        || ip.is_multicast()
        || matches!(ip.octets(), [0 | 240.., ..] | [100, 64..=127, ..] | [198, 18 | 19, ..] | [192, 0, 0, _])
}

fn is_inside_v6(ip: Ipv6Addr) -> bool {
    ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip.is_unique_local()
        || ip.is_unicast_link_local()
        || ip.to_ipv4().is_some()
        || matches!(
            ip.segments(),
            [0x2002 | 0x64 | 0x100 | 0x5f00 | 0xfec0..=0xfeff, ..]
                | [0x2001, 0..=0x1ff | 0xdb8, ..]
                | [0x3fff, 0..=0xfff, ..]
        )
}

/// Whether an object somewhere in it has a key twice; `None` when an ordinary parser refuses it
/// for another reason, such as its depth.
fn has_duplicates(text: &str) -> Option<bool> {
    serde_json::from_str::<Value>(text).ok()?;
    Some(serde_json::from_str::<Unique>(text).is_err())
}

/// Any JSON document whose objects have each key once.
struct Unique;

impl<'de> serde::Deserialize<'de> for Unique {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        macro_rules! scalars {
            ($($name:ident: $type:ty),*) => {
                $(fn $name<E>(self, _: $type) -> Result<Unique, E> { Ok(Unique) })*
            };
        }
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Unique;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a document without duplicate keys")
            }
            scalars!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);
            fn visit_unit<E>(self) -> Result<Unique, E> {
                Ok(Unique)
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Unique, A::Error> {
                while items.next_element::<Unique>()?.is_some() {}
                Ok(Unique)
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut members: A) -> Result<Unique, A::Error> {
                let mut seen = BTreeSet::new();
                while let Some(name) = members.next_key::<String>()? {
                    members.next_value::<Unique>()?;
                    if !seen.insert(name) {
                        return Err(serde::de::Error::custom("a duplicate key"));
                    }
                }
                Ok(Unique)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A document without the white space between its tokens.
fn compact(text: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    let mut keep = |c: char| {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            _ => return quoted || !c.is_ascii_whitespace(),
        }
        true
    };
    text.chars().filter(|c| keep(*c)).collect()
}

fn key() -> IdempotencyKey {
    IdempotencyKey::parse("whk_00000000-0000-4000-8000-000000000001").expect("a key")
}

/// A small webhook to there.
pub fn prepared(url: CallbackUrl) -> Prepared {
    Prepared {
        url,
        key: key(),
        body: Bytes::from_static(b"{\"a\":1}"),
        authentication: None,
        signing_scope: None,
    }
}

fn verifier() -> Verifier {
    Verifier::new(KEYS.clone(), Revocation::default(), ReplayWindow::new(10))
}

static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let pem = include_str!("../../vectors/ed25519-pkcs8.pem");
    let key = SigningKey::from_pem(pem, Some("k1")).expect("a key");
    let ring = KeyRing::new(vec![key]).expect("a ring");
    Signer::new(ring, LegacyModes::default()).with_nonces(|| Some(Nonce::new([7; 16])))
});

static KEYS: LazyLock<VerifyingKeys> = LazyLock::new(|| {
    VerifyingKeys::parse(&SIGNER.keys().ring(None).expect("the default ring").jwks(now()).to_string())
        .expect("a JWKS")
});

/// Method, URL, the headers of [`HEADERS`], body.
static SIGNED: LazyLock<Vec<String>> = LazyLock::new(|| {
    let url = "https://buyer.example/hook?token=a%20b";
    let prepared = prepared(CallbackUrl::parse(url, UrlSchemes::HttpsOnly).expect("a URL"));
    let headers = SIGNER.headers(&prepared, now()).expect("signing");
    let mut fields = vec!["POST".to_owned(), url.to_owned()];
    fields.extend(HEADERS.map(|name| headers[name].to_str().expect("ASCII").to_owned()));
    fields.push(String::from_utf8(prepared.body.to_vec()).expect("UTF-8"));
    fields
});

const HEADERS: [&str; 4] = ["signature-input", "signature", "content-digest", "content-type"];

const SEPARATOR: &str = "\n";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_776_520_800)
}
