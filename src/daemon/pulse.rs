//! Whether the worker moves: what decides if a new process would repair anything.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The worker's pulse. An idle worker has one, and so has one whose database is down: both come
/// back to the head of their loop when they said they would.
#[derive(Debug, Clone)]
pub struct Pulse {
    due_back: watch::Receiver<Instant>,
    slack: Duration,
}

impl Pulse {
    /// The pulse of a worker that may be late by `slack`.
    #[must_use]
    pub fn new(due_back: watch::Receiver<Instant>, slack: Duration) -> Self {
        Self { due_back, slack }
    }

    /// Whether the worker is back, or not yet too late.
    #[must_use]
    pub fn beats(&self) -> bool {
        Instant::now() <= *self.due_back.borrow() + self.slack
    }
}
