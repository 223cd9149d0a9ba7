//! The trace context that goes with each attempt: W3C Trace Context, `traceparent`.
//!
//! All attempts of one delivery share a trace, and each is a span of its own: whoever looks for
//! a webhook finds the retries beside each other, in the seller's traces and the buyer's. The
//! trace id is the UUID inside the idempotency key, so that it needs no column, every daemon
//! knows it, and a person can tell it from the key. A UUIDv4 is random enough for one (Trace
//! Context, level 2: the seven bytes at the right). The header is not signed: AdCP's profile
//! signs five components and no more, and proxies may change this one.

use std::fmt::Write;

use aws_lc_rs::digest::{SHA256, digest};
use uuid::Uuid;

use super::IdempotencyKey;

/// One attempt of one delivery, as traces know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
}

impl TraceContext {
    /// The context of the attempt that this lease allows. A lease allows one attempt of a
    /// delivery, so no two of them share a span.
    #[must_use]
    pub fn of(key: &IdempotencyKey, lease: Uuid) -> Self {
        let own = key.as_str().strip_prefix("whk_").and_then(|text| Uuid::try_parse(text).ok());
        let trace_id = match own {
            Some(uuid) if !uuid.is_nil() => uuid.into_bytes(),
            _ => first(digest(&SHA256, key.as_str().as_bytes()).as_ref()),
        };
        let attempt = [trace_id.as_slice(), lease.as_bytes()].concat();
        Self { trace_id, span_id: first(digest(&SHA256, &attempt).as_ref()) }
    }

    /// The trace, 32 hex digits.
    #[must_use]
    pub fn trace_id(&self) -> String {
        hex(&self.trace_id)
    }

    /// The span, 16 hex digits.
    #[must_use]
    pub fn span_id(&self) -> String {
        hex(&self.span_id)
    }

    /// The header's value. Always sampled: every attempt is recorded here, in the log at least,
    /// and "not sampled" would have many receivers drop their half.
    #[must_use]
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace_id(), self.span_id())
    }
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut taken = [0; N];
    taken.copy_from_slice(&bytes[..N]);
    taken
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(key: &str, lease: u128) -> TraceContext {
        TraceContext::of(&IdempotencyKey::parse(key).unwrap(), Uuid::from_u128(lease))
    }

    #[test]
    fn attempts_share_the_trace_that_the_key_names_and_have_spans_of_their_own() {
        let key = "whk_0af76519-16cd-43dd-8448-eb211c80319c";
        let (first, second) = (context(key, 1), context(key, 2));
        assert_eq!(first.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(first.trace_id(), second.trace_id());
        assert_ne!(first.span_id(), second.span_id());
        assert_eq!(first, context(key, 1));
        // Rows of one claim share its lease.
        assert_ne!(first.span_id(), context("whk_0af76519-16cd-43dd-8448-eb211c80319d", 1).span_id());
        let text = first.traceparent();
        assert_eq!(text, format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", first.span_id()));
        assert_eq!(text.len(), 55);
    }

    #[test]
    fn a_key_that_names_no_trace_still_has_one() {
        for key in ["whk_t1_0123456789abcdef", "whk_00000000-0000-0000-0000-000000000000"] {
            let trace = context(key, 1).trace_id();
            assert!(trace.len() == 32 && trace != "0".repeat(32), "{key}");
            assert_eq!(trace, context(key, 2).trace_id());
        }
    }
}
