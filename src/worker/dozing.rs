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

/// What the doorbell is being asked.
pub(super) struct Bell {
    pub(super) opening: Option<Underway<Opened>>,
    pub(super) passing: Option<Underway<Passed>>,
    /// Silence was asked for after the latest opening.
    silenced: bool,
    /// It could not be asked: not before this again.
    not_before: Instant,
}

/// The bell may ring again.
pub(super) struct Opened {
    horizon: Horizon,
    /// Whether another daemon keeps it silent all the same.
    held: bool,
}

/// How far a horizon is.
pub(super) struct Passed {
    horizon: Horizon,
    passed: bool,
    held: bool,
}

impl Default for Bell {
    fn default() -> Self {
        Self { opening: None, passing: None, silenced: false, not_before: Instant::now() }
    }
}

impl Bell {
    /// Since when an answer has been waited for.
    pub(super) fn since(&self) -> impl Iterator<Item = Instant> {
        let opening = self.opening.as_ref().map(|opening| opening.since);
        let passing = self.passing.as_ref().map(|passing| passing.since);
        opening.into_iter().chain(passing)
    }

    /// Whether it could not be asked just now. As a rule the lock went with the connection, and the bell rings.
    pub(super) fn is_cut_off(&self) -> bool {
        Instant::now() < self.not_before
    }
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// Asks that the bell may ring again, unless that is being asked.
    pub(super) fn begin_opening(&mut self) {
        if self.bell.is_cut_off() {
            self.next_look = self.next_look.min(self.bell.not_before);
            return;
        }
        if self.bell.opening.is_some() {
            return;
        }
        self.bell.silenced = false;
        let (opening, doorbell) = (self.doorbell.open(), self.doorbell.clone());
        self.bell.opening = Some(Underway::begin(async move {
            let horizon = opening.await.map_err(|_| OutboxError::Silent)?;
            // What another daemon silences from here on is not before that horizon.
            let held = doorbell.held_by_another().await.unwrap_or(true);
            Ok(Opened { horizon, held })
        }));
    }

    /// The bell rings again: what stayed silent until now must end before we sleep.
    pub(super) fn opened(&mut self, answer: Result<Opened, OutboxError>) {
        let now = Instant::now();
        if self.bell.silenced {
            // We are to stay awake after all.
            return;
        }
        match answer {
            Ok(Opened { horizon, held }) => {
                tracing::debug!("dozing: the bell may ring again");
                self.phase = Phase::Dozing { horizon, pause: MIN_DOZING_PAUSE, passed: false, held };
                self.next_look = now;
            }
            Err(_) => {
                self.bell.not_before = now + OUTAGE_PAUSE;
                if self.phase == Phase::Awake {
                    // It may be opened all the same, later.
                    self.doorbell.close();
                } else {
                    // Then it is asked again: we are still watchful.
                    self.next_look = self.next_look.min(self.bell.not_before);
                }
            }
        }
    }

    /// Asks whether every transaction before the horizon has ended, unless that is being asked.
    pub(super) fn begin_passing(&mut self, horizon: Horizon) {
        if self.bell.passing.is_some() {
            return;
        }
        let doorbell = self.doorbell.clone();
        self.bell.passing = Some(Underway::begin(async move {
            // Without an answer they may be open.
            let passed = doorbell.passed(horizon).await.unwrap_or(false);
            let held = doorbell.held_by_another().await.unwrap_or(true);
            Ok(Passed { horizon, passed, held })
        }));
    }

    /// Looks once more if all have ended, and asks again after a while if not. A look that is under way is none at
    /// everything, and so proves nothing.
    pub(super) fn passed(&mut self, answer: Result<Passed, OutboxError>) {
        let now = Instant::now();
        let Phase::Dozing { horizon, pause, passed: false, held } = self.phase else { return };
        let answer = answer.ok().filter(|answer| answer.horizon == horizon);
        let passed = answer.as_ref().is_some_and(|answer| answer.passed);
        let held = held || answer.is_none_or(|answer| answer.held);
        self.phase = Phase::Dozing { horizon, pause: (pause * 2).min(MAX_DOZING_PAUSE), passed, held };
        self.next_look = if passed { now } else { self.next_look.min(now + pause) };
    }

    /// Asks for silence, unless that was done already.
    pub(super) fn stay_awake(&mut self) {
        let opening = self.bell.opening.is_some() && !self.bell.silenced;
        if self.phase == Phase::Awake && !opening {
            return;
        }
        tracing::debug!("awake: the bell is asked to be silent");
        self.phase = Phase::Awake;
        self.bell.silenced = true;
        self.doorbell.close();
    }
}

const MIN_DOZING_PAUSE: Duration = Duration::from_millis(2);
/// A seller's long transaction holds the horizon back; looking more often does not end it.
pub(super) const MAX_DOZING_PAUSE: Duration = Duration::from_secs(1);
