//! Remembers nonces for as long as a signature could come again.

use std::collections::HashMap;

/// The nonces seen, by `kid`, with a limit for each.
#[derive(Debug)]
pub struct ReplayWindow {
    limit: usize,
    seen: HashMap<String, HashMap<String, u64>>,
}

impl ReplayWindow {
    /// A window for at most `limit` nonces of one key. At the limit further requests are
    /// refused, because forgetting one would let it be replayed.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, seen: HashMap::new() }
    }

    /// Whether no further nonce of this key fits. Forgets what has passed only then, so that a
    /// request costs no walk through the window.
    pub(super) fn is_full(&mut self, kid: &str, now: u64) -> bool {
        let Some(nonces) = self.seen.get_mut(kid) else { return self.limit == 0 };
        if nonces.len() >= self.limit {
            nonces.retain(|_, forget_at| *forget_at >= now);
        }
        nonces.len() >= self.limit
    }

    /// Remembers a nonce until `forget_at`, in Unix seconds; false when it was there already.
    pub(super) fn remember(&mut self, kid: &str, nonce: &str, forget_at: u64) -> bool {
        let nonces = self.seen.entry(kid.to_owned()).or_default();
        nonces.insert(nonce.to_owned(), forget_at).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_window_opens_again_when_nonces_expire() {
        let mut window = ReplayWindow::new(2);
        assert!(window.remember("k", "a", 10) && window.remember("k", "b", 20));
        assert!(!window.remember("k", "a", 10));
        assert!(window.is_full("k", 10));
        assert!(!window.is_full("other", 10));
        assert!(!window.is_full("k", 11));
        assert!(window.remember("k", "a", 30));
    }
}
