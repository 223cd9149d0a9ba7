//! One attempt: check the URL, sign, post, read the answer, all within one deadline.
//!
//! The client follows no redirect, retries nothing, honours no proxy and decompresses nothing.
//! Its resolver is the [`Resolver`], so that it connects to checked addresses only. Errors are
//! told apart by type, and none of their texts leaves this file: they carry the URL.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::Response;
use reqwest::header::{ACCEPT_ENCODING, CONNECTION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use rustls::ClientConfig;
use rustls::client::Resumption;

use super::connections::{Connections, Recipe};
use super::guard::ResolveError;
use super::{FailureReason, GuardPolicy, Outcome, Prepared, Resolver, SignatureError, Signer, TraceContext};

/// Sends webhooks under one policy.
#[derive(Debug, Clone)]
pub struct Sender {
    policy: Arc<GuardPolicy>,
    connections: Arc<Connections>,
}

/// How a [`Sender`] connects.
#[derive(Debug, Clone)]
pub struct SenderOptions {
    /// Connections in all, in use or idle; each takes some 30 KiB. Where more are in use than that, they are closed
    /// after their requests. One that is idle is closed after 15 to 30 s, or for the sake of another destination.
    /// As the HTTP client now and then opens one more than it needs, there may be a few more.
    pub max_connections: usize,
    /// DNS lookups at a time; each occupies a thread. A [`Resolver`] that is handed in has its own
    /// limit.
    pub max_lookups: usize,
    /// The `User-Agent`: printable ASCII.
    pub user_agent: String,
}

impl Default for SenderOptions {
    fn default() -> Self {
        Self {
            max_connections: 512,
            max_lookups: 64,
            user_agent: concat!("taskbell/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

impl Sender {
    /// Builds the HTTP client over `tls`, which says whom to trust.
    ///
    /// # Errors
    /// [`SenderError`]: the client refuses an option.
    pub fn new(tls: ClientConfig, policy: GuardPolicy, options: &SenderOptions) -> Result<Self, SenderError> {
        Self::with_resolver(tls, Resolver::new(policy, options.max_lookups), options)
    }

    /// The same with a resolver of the caller's, whose policy is the sender's.
    ///
    /// # Errors
    /// As [`Sender::new`].
    pub fn with_resolver(
        tls: ClientConfig,
        resolver: Resolver,
        options: &SenderOptions,
    ) -> Result<Self, SenderError> {
        let policy = Arc::clone(resolver.policy());
        let mut tls = tls;
        // By itself it remembers 32 destinations: those whose connections were closed pay for less of a handshake.
        tls.resumption = Resumption::in_memory_sessions(TICKETS * options.max_connections);
        let recipe = Recipe { tls, resolver, user_agent: options.user_agent.clone() };
        let connections = Connections::new(recipe, options.max_connections);
        let connections = connections.map_err(|error| SenderError(error.without_url()))?;
        Ok(Self { policy, connections: Arc::new(connections) })
    }

    /// Makes one attempt, as this span of its trace. `now` is when it is signed; `deadline` bounds everything, from the
    /// DNS lookup to the last byte that is read.
    pub async fn send(
        &self,
        prepared: &Prepared,
        signer: &Signer,
        trace: TraceContext,
        now: SystemTime,
        deadline: Duration,
    ) -> Outcome {
        let target = prepared.url.target();
        if self.policy.check_url(target.url()).is_err() {
            return Outcome::AddressRefused;
        }
        let headers = match signer.headers(prepared, now) {
            Ok(headers) => headers,
            Err(outcome) => return outcome,
        };
        let deadline = tokio::time::Instant::now() + deadline;
        let mut connection = self.connections.lend(target.url());
        let mut request = connection.client.post(target.url().clone()).headers(headers);
        if connection.is_last {
            request = request.header(CONNECTION, "close");
        }
        let request = request.header(TRACEPARENT, trace.traceparent());
        let request = request.header(ACCEPT_ENCODING, "identity").body(prepared.body.clone());
        match tokio::time::timeout_at(deadline, request.send()).await {
            Ok(Ok(response)) => {
                let outcome = answered(response.status().as_u16(), response.headers(), now);
                let closes = response
                    .headers()
                    .get(CONNECTION)
                    .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
                // Only so that the connection can be used again: the status is the answer.
                let is_read = tokio::time::timeout_at(deadline, drain(response)).await.unwrap_or(false);
                if is_read && !closes {
                    connection.returned();
                }
                outcome
            }
            Ok(Err(error)) => classify(&error),
            Err(_) => Outcome::Failed(FailureReason::Timeout),
        }
    }
}

/// Reads and drops at most [`MAX_RESPONSE_BYTES`] of the body; whether that is all of it.
async fn drain(mut response: Response) -> bool {
    let mut read = 0;
    while read < MAX_RESPONSE_BYTES {
        match response.chunk().await {
            Ok(Some(chunk)) => read += chunk.len(),
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
    false
}

fn answered(status: u16, headers: &HeaderMap, now: SystemTime) -> Outcome {
    let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    Outcome::Answered {
        status,
        retry_after: headers.get(RETRY_AFTER).and_then(|value| retry_after(value, now)),
        signature_error: SignatureError::find(challenges),
    }
}

/// Seconds or an HTTP date (RFC 9110 §10.2.3); a date in the past is zero.
fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// What ended a request without an answer, by the types in the error's chain.
fn classify(error: &reqwest::Error) -> Outcome {
    let reason = if let Some(resolve) = cause::<ResolveError>(error) {
        match resolve {
            ResolveError::Refused(_) => return Outcome::AnswerRefused,
            ResolveError::Lookup(_) | ResolveError::Empty | ResolveError::Closed => FailureReason::Dns,
        }
    } else if cause::<rustls::Error>(error).is_some() {
        FailureReason::Tls
    } else if error.is_timeout() {
        FailureReason::Timeout
    } else if error.is_connect() {
        FailureReason::Connect
    } else if cause::<io::Error>(error).is_some_and(|error| RESETS.contains(&error.kind())) {
        FailureReason::Reset
    } else {
        FailureReason::ResponseBroken
    };
    Outcome::Failed(reason)
}

/// The first error of type `E` in the chain, also inside an [`io::Error`], whose `source` skips
/// the error that it wraps.
fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// The HTTP client refuses its configuration.
#[derive(Debug, thiserror::Error)]
#[error("cannot build the HTTP client")]
pub struct SenderError(#[source] reqwest::Error);

/// W3C Trace Context, "Traceparent Header".
const TRACEPARENT: &str = "traceparent";
const RESETS: [io::ErrorKind; 4] = [
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::ConnectionAborted,
    io::ErrorKind::BrokenPipe,
    io::ErrorKind::UnexpectedEof,
];

/// What is remembered of one TLS 1.3 server.
const TICKETS: usize = 8;

/// As the AdCP Python SDK; nothing of it is kept.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sat, 18 Apr 2026 14:00:00 GMT").unwrap();
        for (text, expected) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sat, 18 Apr 2026 14:01:30 GMT", Some(90)),
            ("Sat, 18 Apr 2026 13:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("1.5", None),
        ] {
            let value = HeaderValue::from_static(text);
            assert_eq!(retry_after(&value, now), expected.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn an_error_inside_an_io_error_is_found() {
        let inner = ResolveError::Refused(super::super::AddressRefused::Address);
        let error = io::Error::other(io::Error::other(inner));
        assert!(matches!(cause::<ResolveError>(&error), Some(ResolveError::Refused(_))));
        assert!(cause::<rustls::Error>(&error).is_none());
    }
}
