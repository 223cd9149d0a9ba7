//! What the bell has said since the worker last asked, put together: any number of notifications
//! while the worker is busy are one thing to look at, of bounded size.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Where to look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// The listener has just subscribed: something may have been missed.
    pub connected: bool,
    /// Another daemon has more than it can take, or leaves: what it silenced may still be open.
    pub help: bool,
    /// Notifications in all.
    pub bells: usize,
    /// One of them did not say where, or there were too many to remember.
    pub anywhere: bool,
    /// State changes were recorded that nobody is owed a webhook for.
    pub changes: bool,
    /// Where webhooks are owed: `taskbell.bell_of(lane, account)`.
    pub places: BTreeSet<i64>,
}

impl Heard {
    /// Whether there is nothing to look at.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        !(self.connected || self.help || self.anywhere || self.changes) && self.places.is_empty()
    }

    /// Adds what came later.
    pub fn extend(&mut self, later: Self) {
        self.connected |= later.connected;
        self.help |= later.help;
        self.bells += later.bells;
        self.anywhere |= later.anywhere;
        self.changes |= later.changes;
        self.places.extend(later.places);
        if self.places.len() > MAX_PLACES {
            self.anywhere = true;
            self.places.clear();
        }
    }

    /// What one notification says; by an unknown payload, to look anywhere.
    pub(super) fn bell(payload: &str) -> Self {
        let mut heard = Self { bells: 1, ..Self::default() };
        match payload.parse() {
            Ok(place) => _ = heard.places.insert(place),
            Err(_) if payload == CHANGE => heard.changes = true,
            Err(_) if payload == HELP => heard.help = true,
            Err(_) => heard.anywhere = true,
        }
        heard
    }
}

/// Two ends: what one has said the other hears.
#[must_use]
pub fn wakes() -> (Ringer, Wakes) {
    let shared = Arc::new(Shared::default());
    (Ringer(shared.clone()), Wakes(shared))
}

#[derive(Default)]
struct Shared {
    heard: Mutex<Heard>,
    said: Notify,
}

/// The listener's end.
pub struct Ringer(Arc<Shared>);

impl Ringer {
    /// Says so, whether or not somebody waits.
    pub fn say(&self, heard: Heard) {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner).extend(heard);
        self.0.said.notify_one();
    }
}

/// The worker's end.
pub struct Wakes(Arc<Shared>);

impl Wakes {
    /// Everything that was said since it was last asked; waits until something is. Cancel safe.
    pub async fn next(&mut self) -> Heard {
        loop {
            let heard = std::mem::take(&mut *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner));
            if !heard.is_nothing() {
                return heard;
            }
            self.0.said.notified().await;
        }
    }
}

/// The payload of a change that no webhook is owed for, as in the triggers.
const CHANGE: &str = "change";
/// What daemons ring each other with.
pub const HELP: &str = "help";
/// More places than this are looked at all together.
const MAX_PLACES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_said_is_heard_once_and_all_of_it() {
        let (ringer, mut wakes) = wakes();
        for payload in ["17", "-5", "17", "change"] {
            ringer.say(Heard::bell(payload));
        }
        let places = BTreeSet::from([-5, 17]);
        assert_eq!(wakes.next().await, Heard { bells: 4, changes: true, places, ..Heard::default() });
        ringer.say(Heard::bell(""));
        assert_eq!(wakes.next().await, Heard { bells: 1, anywhere: true, ..Heard::default() });
        assert!(tokio::time::timeout(std::time::Duration::ZERO, wakes.next()).await.is_err());
    }

    #[test]
    fn too_many_places_are_anywhere() {
        let mut heard = Heard::default();
        for place in 0..=MAX_PLACES {
            heard.extend(Heard::bell(&place.to_string()));
        }
        assert!(heard.anywhere && heard.places.is_empty());
    }
}
