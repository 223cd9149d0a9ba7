//! The receiver's half: the AdCP verifier checklist for webhooks, in its order.
//!
//! Rust has no AdCP SDK, so buyers may use this as it stands. A request is judged step by step
//! and refused with the spec's error code; the answer to give is 401 with
//! `WWW-Authenticate: Signature error="<code>"`.

use std::collections::{HashMap, HashSet};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;

use super::sign::{COMPONENTS, CONTENT_TYPE, TAG, WINDOW_SECONDS, base};
use super::target::Target;

/// How far ahead of us a sender's clock may be, and how long after its expiry a signature is
/// still taken, in seconds.
pub const SKEW_SECONDS: u64 = 60;

/// A request as it arrived. Header names in lower case.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// The URL as the sender meant it: scheme, `Host` header, request target.
    pub url: &'a str,
    /// `Content-Type`, if there is one.
    pub content_type: Option<&'a str>,
    /// `Content-Digest`, if there is one.
    pub content_digest: Option<&'a str>,
    /// `Signature-Input`, if there is one.
    pub signature_input: Option<&'a str>,
    /// `Signature`, if there is one.
    pub signature: Option<&'a str>,
    /// The body's bytes.
    pub body: &'a [u8],
}

/// Verifies requests against one sender's published keys, and remembers their nonces.
#[derive(Debug, Default)]
pub struct Verifier {
    keys: HashMap<String, Value>,
    revoked: HashSet<String>,
    seen: HashMap<(String, String), u64>,
    capacity: Option<usize>,
}

/// Why a request is not believed: the spec's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.code())]
#[non_exhaustive]
pub enum Refusal {
    /// A header is missing, malformed or unpaired.
    HeaderMalformed,
    /// One of the six parameters is missing.
    ParamsIncomplete,
    /// Another profile's signature.
    TagInvalid,
    /// Neither Ed25519 nor P-256.
    AlgNotAllowed,
    /// Too old, too long, or from the future.
    WindowInvalid,
    /// Not exactly the five components.
    ComponentsIncomplete,
    /// No such key is published.
    KeyUnknown,
    /// The key is for something else.
    KeyPurposeInvalid,
    /// The key was revoked.
    KeyRevoked,
    /// The URL has no canonical form.
    TargetUriMalformed,
    /// The signature is not of this key over these bytes.
    Invalid,
    /// The body is not the one that was signed.
    DigestMismatch,
    /// The nonce was seen before.
    Replayed,
    /// More nonces of one key than there is room for.
    RateAbuse,
}

impl Refusal {
    /// The code for `WWW-Authenticate: Signature error="…"`.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::HeaderMalformed => "webhook_signature_header_malformed",
            Self::ParamsIncomplete => "webhook_signature_params_incomplete",
            Self::TagInvalid => "webhook_signature_tag_invalid",
            Self::AlgNotAllowed => "webhook_signature_alg_not_allowed",
            Self::WindowInvalid => "webhook_signature_window_invalid",
            Self::ComponentsIncomplete => "webhook_signature_components_incomplete",
            Self::KeyUnknown => "webhook_signature_key_unknown",
            Self::KeyPurposeInvalid => "webhook_signature_key_purpose_invalid",
            Self::KeyRevoked => "webhook_signature_key_revoked",
            Self::TargetUriMalformed => "webhook_target_uri_malformed",
            Self::Invalid => "webhook_signature_invalid",
            Self::DigestMismatch => "webhook_signature_digest_mismatch",
            Self::Replayed => "webhook_signature_replayed",
            Self::RateAbuse => "webhook_signature_rate_abuse",
        }
    }
}

impl Verifier {
    /// A verifier that trusts the keys of a JWKS document.
    #[must_use]
    pub fn new(jwks: &Value) -> Self {
        let keys = jwks["keys"].as_array().into_iter().flatten();
        let by_kid = keys.filter_map(|key| Some((key["kid"].as_str()?.to_owned(), key.clone())));
        Self { keys: by_kid.collect(), ..Self::default() }
    }

    /// Refuses these keys from now on.
    pub fn revoke(&mut self, kids: impl IntoIterator<Item = String>) {
        self.revoked.extend(kids);
    }

    /// Remembers at most so many nonces of one key; beyond that requests are refused, so that a
    /// sender cannot fill the memory.
    pub fn limit_nonces(&mut self, per_key: usize) {
        self.capacity = Some(per_key);
    }

    /// Verifies one request at Unix time `now`; the key id it was signed with.
    ///
    /// # Errors
    /// [`Refusal`], with the code to answer.
    pub fn verify(&mut self, request: &Received<'_>, now: u64) -> Result<String, Refusal> {
        let (Some(input), Some(signature)) = (request.signature_input, request.signature) else {
            return Err(Refusal::HeaderMalformed);
        };
        let input = member(input).ok_or(Refusal::HeaderMalformed)?;
        let signature = member(signature).ok_or(Refusal::HeaderMalformed)?;
        let signature = signature.strip_prefix(':').and_then(|rest| rest.strip_suffix(':'));
        let signature = decode(signature.ok_or(Refusal::HeaderMalformed)?).ok_or(Refusal::HeaderMalformed)?;
        let (components, parameters) = parse_input(input).ok_or(Refusal::HeaderMalformed)?;
        let text = |name: &str| {
            let value = parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
            value.ok_or(Refusal::ParamsIncomplete)
        };
        let (created, expires) = (text("created")?, text("expires")?);
        let (nonce, keyid, alg, tag) = (text("nonce")?, text("keyid")?, text("alg")?, text("tag")?);
        if tag != TAG {
            return Err(Refusal::TagInvalid);
        }
        let algorithm: &'static dyn VerificationAlgorithm = match alg.as_str() {
            "ed25519" => &ED25519,
            "ecdsa-p256-sha256" => &ECDSA_P256_SHA256_FIXED,
            _ => return Err(Refusal::AlgNotAllowed),
        };
        let number = |text: &str| text.parse::<u64>().map_err(|_| Refusal::HeaderMalformed);
        let (created, expires) = (number(created)?, number(expires)?);
        let in_window = expires > created
            && expires - created <= WINDOW_SECONDS
            && created <= now + SKEW_SECONDS
            && expires.saturating_add(SKEW_SECONDS) >= now;
        if !in_window {
            return Err(Refusal::WindowInvalid);
        }
        if components != COMPONENTS || request.content_type.map(str::trim) != Some(CONTENT_TYPE) {
            return Err(Refusal::ComponentsIncomplete);
        }
        let digest = request.content_digest.ok_or(Refusal::ComponentsIncomplete)?.trim();
        let key = self.keys.get(keyid).ok_or(Refusal::KeyUnknown)?;
        let key = public_key(key, algorithm_name(alg))?;
        if self.revoked.contains(keyid) {
            return Err(Refusal::KeyRevoked);
        }
        let nonces = self.seen.keys().filter(|(kid, _)| kid == keyid).count();
        if self.capacity.is_some_and(|capacity| nonces >= capacity) {
            return Err(Refusal::RateAbuse);
        }
        let target = Target::parse(request.url).map_err(|_| Refusal::TargetUriMalformed)?;
        let base = base(&target, digest, input);
        UnparsedPublicKey::new(algorithm, key)
            .verify(base.as_bytes(), &signature)
            .map_err(|_| Refusal::Invalid)?;
        if !digest_matches(digest, request.body) {
            return Err(Refusal::DigestMismatch);
        }
        if decode(nonce).is_none_or(|nonce| nonce.len() < 16) {
            return Err(Refusal::ParamsIncomplete);
        }
        let keyid = keyid.clone();
        self.remember(&keyid, nonce, expires, now)?;
        Ok(keyid)
    }

    /// Remembers a nonce until its signature can no longer be in its window.
    pub fn remember(&mut self, keyid: &str, nonce: &str, expires: u64, now: u64) -> Result<(), Refusal> {
        self.seen.retain(|_, until| *until >= now);
        let until = expires.saturating_add(SKEW_SECONDS);
        match self.seen.insert((keyid.to_owned(), nonce.to_owned()), until) {
            None => Ok(()),
            Some(_) => Err(Refusal::Replayed),
        }
    }
}

fn algorithm_name(alg: &str) -> (&'static str, &'static str) {
    match alg {
        "ed25519" => ("OKP", "Ed25519"),
        _ => ("EC", "P-256"),
    }
}

/// The key's bytes, if it may verify webhooks with this algorithm.
fn public_key(jwk: &Value, (kty, crv): (&str, &str)) -> Result<Vec<u8>, Refusal> {
    let purpose = matches!(jwk["adcp_use"].as_str(), Some("request-signing" | "webhook-signing"));
    let verifies = jwk["key_ops"].as_array().is_some_and(|ops| ops.iter().any(|op| op == "verify"));
    let usable = jwk["use"].as_str().is_none_or(|usage| usage == "sig");
    if !purpose || !verifies || !usable {
        return Err(Refusal::KeyPurposeInvalid);
    }
    if jwk["kty"] != kty || jwk["crv"] != crv {
        return Err(Refusal::AlgNotAllowed);
    }
    let coordinate = |name: &str| jwk[name].as_str().and_then(decode).ok_or(Refusal::KeyUnknown);
    Ok(match kty {
        "OKP" => coordinate("x")?,
        _ => [vec![4], coordinate("x")?, coordinate("y")?].concat(),
    })
}

/// The value of `sig1` in a dictionary (RFC 8941 §3.2). Other labels are not ours.
fn member(header: &str) -> Option<&str> {
    let mut found = None;
    let mut rest = header;
    while !rest.trim().is_empty() {
        let end = member_end(rest);
        let (name, value) = rest[..end].split_once('=')?;
        if name.trim() == "sig1" && found.replace(value.trim()).is_some() {
            return None;
        }
        rest = rest[end..].strip_prefix(',').unwrap_or_default();
    }
    found
}

/// Where a dictionary member ends: at the first comma outside a string.
fn member_end(text: &str) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return at,
            _ => {}
        }
    }
    text.len()
}

type Parameters<'a> = Vec<(&'a str, String)>;

/// An inner list of strings and its parameters, each named once (RFC 8941 §3.1.1, §3.1.2).
fn parse_input(text: &str) -> Option<(Vec<String>, Parameters<'_>)> {
    let (mut list, mut rest) = text.strip_prefix('(')?.split_once(')')?;
    let mut components = Vec::new();
    while !list.trim().is_empty() {
        let (component, after) = sf_string(list.trim_start())?;
        components.push(component);
        list = after;
    }
    let mut parameters: Parameters<'_> = Vec::new();
    while let Some(parameter) = rest.strip_prefix(';') {
        let (name, value) = parameter.split_once('=')?;
        if name.is_empty() || parameters.iter().any(|(known, _)| *known == name) {
            return None;
        }
        let (value, after) = match value.starts_with('"') {
            true => sf_string(value)?,
            false => {
                let end = value.find(';').unwrap_or(value.len());
                let digits = &value[..end];
                if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                (digits.to_owned(), &value[end..])
            }
        };
        parameters.push((name, value));
        rest = after;
    }
    rest.is_empty().then_some((components, parameters))
}

/// An sf-string and what follows it (RFC 8941 §4.2.5).
fn sf_string(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.strip_prefix('"')?.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 2..])),
            '\\' => {
                value.push(characters.next().map(|(_, next)| next).filter(|next| "\\\"".contains(*next))?)
            }
            ' '..='~' => value.push(character),
            _ => return None,
        }
    }
    None
}

/// Unpadded base64url, nothing else: a mixed alphabet is malformed.
fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// Both spellings of the digest are in use: padded standard base64 and unpadded base64url.
fn digest_matches(header: &str, body: &[u8]) -> bool {
    let Some(encoded) = header.strip_prefix("sha-256=:").and_then(|rest| rest.strip_suffix(':')) else {
        return false;
    };
    let actual = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
    let claimed = STANDARD.decode(encoded).or_else(|_| URL_SAFE_NO_PAD.decode(encoded));
    claimed.is_ok_and(|claimed| verify_slices_are_equal(&claimed, actual.as_ref()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AdCP 3.2.0-beta.5 webhook-signing vectors, positive and negative.
    const VECTORS: &str = include_str!("../../tests/vectors/received_webhooks.json");

    #[test]
    fn the_specs_webhook_signing_vectors_hold() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let mut judged = 0;
        for case in vectors["cases"].as_array().unwrap() {
            let mut jwks = vectors.clone();
            if let Some(replaced) = case["jwks"].as_object() {
                jwks["keys"] = replaced.values().cloned().collect();
            }
            let mut verifier = Verifier::new(&jwks);
            let now = case["now"].as_u64().unwrap();
            let state = &case["state"];
            if state["revocation_list_stale_seconds"].is_number() {
                // Fetching a revocation list is the buyer's business, and so is its age.
                continue;
            }
            for kid in state["revoked_kids"].as_array().into_iter().flatten() {
                verifier.revoke([kid.as_str().unwrap().to_owned()]);
            }
            for entry in state["replay_cache_entries"].as_array().into_iter().flatten() {
                let text = |name: &str| entry[name].as_str().unwrap();
                verifier.remember(text("keyid"), text("nonce"), now + 300, now).unwrap();
            }
            if let Some(kid) = state["per_keyid_cap_filled_for"].as_str() {
                verifier.limit_nonces(1);
                verifier.remember(kid, "another nonce", now + 300, now).unwrap();
            }
            let header = |name: &str| {
                let headers = case["headers"].as_object().unwrap();
                headers
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .and_then(|(_, value)| value.as_str())
            };
            let request = Received {
                url: case["url"].as_str().unwrap(),
                content_type: header("content-type"),
                content_digest: header("content-digest"),
                signature_input: header("signature-input"),
                signature: header("signature"),
                body: case["body"].as_str().unwrap().as_bytes(),
            };
            let found = verifier.verify(&request, now).err().map(Refusal::code);
            assert_eq!(found, case["error"].as_str(), "{}", case["name"]);
            judged += 1;
        }
        assert_eq!(judged, 28);
    }
}
