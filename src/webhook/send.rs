//! One attempt on the wire: guard, sign, POST, read a little, say what happened.
//!
//! One deadline covers everything from the look-up to the last byte that is read. Redirects,
//! proxies, decompression and retries of the HTTP client are off: each would send what was not
//! signed, or to where nobody checked.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response};
use tokio::time::timeout;

use super::guard::{GuardError, GuardPolicy, GuardedResolver};
use super::key::KeyRing;
use super::sign::{self, Nonce};
use super::target::Target;
use super::{FailureReason, Outcome, Prepared};
use crate::task::Authentication;

/// Which legacy schemes may be used, when a registration chose one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegacySchemes {
    /// `Bearer`.
    pub bearer: bool,
    /// `HMAC-SHA256`.
    pub hmac: bool,
}

/// How to send.
#[derive(Debug, Clone)]
pub struct SenderSettings {
    /// What may be called.
    pub guard: GuardPolicy,
    /// Which legacy schemes may be used.
    pub legacy: LegacySchemes,
    /// For one whole attempt.
    pub deadline: Duration,
    /// Idle connections kept for each host; at least its concurrency, or handshakes are wasted.
    pub idle_per_host: usize,
    /// The `User-Agent`.
    pub user_agent: String,
}

/// Sends webhooks.
#[derive(Clone)]
pub struct Sender {
    client: Client,
    keys: Arc<KeyRing>,
    settings: Arc<SenderSettings>,
}

impl Sender {
    /// A sender that trusts what `tls` trusts.
    ///
    /// # Errors
    /// [`SenderError`] when the HTTP client cannot be built.
    pub fn new(
        tls: rustls::ClientConfig,
        keys: KeyRing,
        settings: SenderSettings,
    ) -> Result<Self, SenderError> {
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(GuardedResolver::new(settings.guard.clone()))
            .redirect(Policy::none())
            .no_proxy()
            .referer(false)
            .retry(reqwest::retry::never())
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT.min(settings.deadline))
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(settings.idle_per_host)
            .user_agent(settings.user_agent.clone())
            .build()
            .map_err(|error| SenderError(error.without_url()))?;
        Ok(Self { client, keys: Arc::new(keys), settings: Arc::new(settings) })
    }

    /// Makes one attempt. Always returns within the deadline.
    pub async fn send(&self, prepared: &Prepared, now: SystemTime) -> Outcome {
        timeout(self.settings.deadline, self.attempt(prepared, now))
            .await
            .unwrap_or(Outcome::Failed(FailureReason::Timeout))
    }

    async fn attempt(&self, prepared: &Prepared, now: SystemTime) -> Outcome {
        let Ok(target) = Target::parse(prepared.url.as_str()) else {
            return Outcome::AddressRefused;
        };
        let Ok(url) = target.to_url() else { return Outcome::AddressRefused };
        if self.settings.guard.check(&target).is_err() {
            return Outcome::AddressRefused;
        }
        let proof = match self.prove(prepared, &target, now) {
            Ok(proof) => proof,
            Err(reason) => return Outcome::OwnFault(reason),
        };
        let mut request = self.client.post(url).header(CONTENT_TYPE, sign::CONTENT_TYPE);
        for (name, value) in proof {
            request = request.header(name, value);
        }
        match request.body(prepared.body.clone()).send().await {
            Ok(response) => answered(response, now).await,
            Err(error) => failed(&error),
        }
    }

    fn prove(
        &self,
        prepared: &Prepared,
        target: &Target,
        now: SystemTime,
    ) -> Result<sign::Headers, FailureReason> {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let legacy = self.settings.legacy;
        match &prepared.authentication {
            None => {
                let key = self.keys.signer().ok_or(FailureReason::NoSigningKey)?;
                let nonce = Nonce::random().map_err(|_| FailureReason::NoSigningKey)?;
                sign::sign(key, target, &prepared.body, seconds, nonce)
                    .map_err(|_| FailureReason::NoSigningKey)
            }
            Some(Authentication::Bearer(secret)) if legacy.bearer => Ok(sign::bearer(secret)),
            Some(Authentication::HmacSha256(secret)) if legacy.hmac => {
                Ok(sign::hmac_sha256(secret, &prepared.body, seconds))
            }
            Some(Authentication::Bearer(_) | Authentication::HmacSha256(_)) => {
                Err(FailureReason::SchemeDisabled)
            }
        }
    }
}

async fn answered(mut response: Response, now: SystemTime) -> Outcome {
    let status = response.status().as_u16();
    let retry_after = retry_after(response.headers(), now);
    let signature_refused = status == 401 && names_webhook_error(response.headers());
    // The body says nothing that we keep; reading a little of it lets the connection be reused.
    let mut read = 0;
    while read < MAX_RESPONSE_BYTES {
        match response.chunk().await {
            Ok(Some(chunk)) => read += chunk.len(),
            Ok(None) | Err(_) => break,
        }
    }
    Outcome::Answered { status, retry_after, signature_refused }
}

/// Which part of the way failed, decided by types, not by messages.
fn failed(error: &reqwest::Error) -> Outcome {
    let mut causes: Vec<&(dyn std::error::Error + 'static)> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause);
        next = cause.source();
    }
    let is =
        |test: &dyn Fn(&(dyn std::error::Error + 'static)) -> bool| causes.iter().any(|cause| test(*cause));
    if is(&|cause| cause.downcast_ref::<GuardError>().is_some()) {
        return Outcome::AnswerRefused;
    }
    let tls = is(&is_tls);
    let reason = if error.is_timeout() {
        FailureReason::Timeout
    } else if tls {
        FailureReason::Tls
    } else if error.is_dns() {
        FailureReason::Dns
    } else if error.is_connect() {
        FailureReason::Connect
    } else {
        FailureReason::Broken
    };
    Outcome::Failed(reason)
}

/// rustls' errors hide inside `io::Error`s, even nested ones, which show them only by `get_ref`.
fn is_tls(cause: &(dyn std::error::Error + 'static)) -> bool {
    match cause.downcast_ref::<std::io::Error>() {
        Some(io) => io.get_ref().is_some_and(|inner| is_tls(inner)),
        None => cause.downcast_ref::<rustls::Error>().is_some(),
    }
}

/// `Retry-After` in seconds or as a date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

/// Whether `WWW-Authenticate` carries a `Signature` challenge with an error that begins with
/// `webhook_`, whatever other parameters and challenges stand beside it.
fn names_webhook_error(headers: &HeaderMap) -> bool {
    headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        let lower = value.to_ascii_lowercase();
        let Some((_, challenge)) = lower.split_once("signature") else { return false };
        challenge.split([',', ' ', ';']).any(|parameter| {
            parameter
                .trim()
                .strip_prefix("error=")
                .is_some_and(|code| code.trim_matches('"').starts_with("webhook_"))
        })
    })
}

/// Why no sender could be built.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client cannot be built")]
pub struct SenderError(#[source] reqwest::Error);

/// AdCP security, webhook transport.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Below what servers keep, so that a POST seldom meets a connection that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    #[test]
    fn a_refused_signature_is_recognized_in_any_spelling() {
        for (value, expected) in [
            (r#"Signature error="webhook_signature_invalid""#, true),
            (r#"signature realm="x", error="webhook_mode_mismatch""#, true),
            (r#"Bearer realm="a", Signature error=webhook_signature_replayed"#, true),
            (r#"Signature error="request_signature_invalid""#, false),
            (r#"Bearer error="invalid_token""#, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
            assert_eq!(names_webhook_error(&headers), expected, "{value}");
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for (value, expected) in [
            ("7", Some(7)),
            (&httpdate::fmt_http_date(now + Duration::from_secs(90)), Some(90)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(value).unwrap());
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{value}");
        }
    }
}
