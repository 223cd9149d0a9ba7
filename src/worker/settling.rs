//! From awake to asleep: the bell is let ring again, and what stayed silent meanwhile is waited for. Both are
//! questions to the doorbell's connection, which may have to wait for a try for the lock that a seller's
//! transaction holds up; nothing else waits for their answers.

use std::time::Duration;

use tokio::time::Instant;

use super::attempt::World;
use super::exchange::Underway;
use super::sleep::Phase;
use super::{OUTAGE_PAUSE, Worker};
use crate::listener::Horizon;
use crate::outbox::{Outbox, OutboxError};

/// What the doorbell has been asked, and what came of it.
pub(super) struct Settling {
    pub(super) opening: Option<Underway<Horizon>>,
    pub(super) passing: Option<Underway<(Horizon, bool)>>,
    /// Silence was asked for after the opening that is under way.
    silenced: bool,
    /// The doorbell has no connection: not asked before.
    not_before: Instant,
}

impl Default for Settling {
    fn default() -> Self {
        Self { opening: None, passing: None, silenced: false, not_before: Instant::now() }
    }
}

impl Settling {
    /// Since when an answer has been waited for.
    pub(super) fn since(&self) -> impl Iterator<Item = Instant> {
        let opening = self.opening.as_ref().map(|opening| opening.since);
        let passing = self.passing.as_ref().map(|passing| passing.since);
        opening.into_iter().chain(passing)
    }
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// Asks that the bell may ring again, unless that is being asked.
    pub(super) fn begin_opening(&mut self) {
        let now = Instant::now();
        if self.settling.opening.is_some() || now < self.settling.not_before {
            return;
        }
        self.settling.silenced = false;
        let answer = self.doorbell.open();
        let task = tokio::spawn(async move { answer.await.map_err(|_| OutboxError::Silent) });
        self.settling.opening = Some(Underway { since: now, task });
    }

    /// The bell rings again: what stayed silent until now must end before we sleep.
    pub(super) fn opened(&mut self, answer: Result<Horizon, OutboxError>) {
        let now = Instant::now();
        if self.settling.silenced {
            // We are awake once more, and the bell is silent.
            return;
        }
        match answer {
            Ok(horizon) => {
                tracing::debug!("nothing comes: the bell may ring again");
                self.phase = Phase::Settling { horizon, pause: MIN_SETTLING_PAUSE, passed: false };
                if now - self.last_busy < self.settings.linger {
                    self.stay_awake();
                }
                self.next_look = now;
            }
            Err(_) => {
                self.settling.not_before = now + OUTAGE_PAUSE;
                if self.phase == Phase::Awake {
                    // It may be opened all the same, later.
                    self.doorbell.close();
                } else {
                    // Then it is asked again: we are still watchful.
                    self.next_look = self.next_look.min(self.settling.not_before);
                }
            }
        }
    }

    /// Asks whether every transaction before the horizon has ended, unless that is being asked.
    pub(super) fn begin_passing(&mut self, horizon: Horizon) {
        if self.settling.passing.is_some() {
            return;
        }
        let answer = self.doorbell.passed(horizon);
        // Without an answer they may be open.
        let task = tokio::spawn(async move { Ok((horizon, answer.await.unwrap_or(false))) });
        self.settling.passing = Some(Underway { since: Instant::now(), task });
    }

    /// Looks once more if all have ended, and asks again after a while if not.
    pub(super) fn passed(&mut self, answer: Result<(Horizon, bool), OutboxError>) {
        let now = Instant::now();
        let Phase::Settling { horizon, pause, passed: false } = self.phase else { return };
        // A look that is under way began before, and so did the question about an earlier horizon.
        let passed = answer.is_ok_and(|(asked, passed)| asked == horizon && passed)
            && self.exchange.claiming.is_none();
        self.phase = Phase::Settling { horizon, pause: (pause * 2).min(MAX_SETTLING_PAUSE), passed };
        self.next_look = if passed { now } else { self.next_look.min(now + pause) };
    }

    /// Asks for silence, unless that was done already.
    pub(super) fn stay_awake(&mut self) {
        if self.phase != Phase::Awake {
            tracing::debug!("awake: the bell is asked to be silent");
            self.phase = Phase::Awake;
            self.settling.silenced = true;
            self.doorbell.close();
        }
    }
}

const MIN_SETTLING_PAUSE: Duration = Duration::from_millis(2);
/// A seller's long transaction holds the horizon back; looking more often does not end it.
pub(super) const MAX_SETTLING_PAUSE: Duration = Duration::from_secs(1);
