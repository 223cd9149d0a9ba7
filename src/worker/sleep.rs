//! When to look next: awake, settling, asleep. The states are told in [`crate::listener::Doorbell`].

use std::time::Duration;

use metrics::counter;
use tokio::time::Instant;

use super::attempt::World;
use super::{OUTAGE_PAUSE, Worker};
use crate::listener::Horizon;
use crate::metrics as names;
use crate::outbox::Outbox;

/// Where the worker stands between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The bell is silent, or was asked to be; we look by ourselves.
    Awake,
    /// The bell rings again, but transactions that stayed silent may still be open.
    Settling {
        horizon: Horizon,
        pause: Duration,
        /// Whether the horizon had passed before the last look.
        passed: bool,
    },
    /// Only the bell, a due row or the safety poll wakes us. `watchful` while another daemon
    /// keeps the bell silent: we would not hear of rows if it were killed.
    Asleep { watchful: bool },
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// Decides when to look next.
    pub(super) async fn after(&mut self, found: bool) -> Instant {
        let now = Instant::now();
        if found {
            self.last_busy = now;
            if matches!(self.phase, Phase::Asleep { .. }) {
                counter!(names::WAKEUPS, "cause" => self.alarm).increment(1);
            }
            self.stay_awake();
            // Rows may already wait behind the ones just taken.
            return if self.attempts.len() < self.settings.concurrency {
                now
            } else {
                now + self.settings.safety_poll
            };
        }
        match self.phase {
            Phase::Awake if now - self.last_busy < self.settings.linger => now + LINGER_POLL,
            Phase::Awake => match self.doorbell.open().await {
                Ok(horizon) => {
                    self.phase = Phase::Settling { horizon, pause: MIN_SETTLING_PAUSE, passed: false };
                    now
                }
                Err(_) => now + OUTAGE_PAUSE,
            },
            // The horizon had passed before the look that found nothing: nobody is silent any more.
            Phase::Settling { passed: true, .. } => {
                self.phase = Phase::Asleep { watchful: false };
                self.rest(now).await
            }
            Phase::Settling { horizon, pause, .. } => {
                let passed = self.doorbell.passed(horizon).await.unwrap_or(false);
                let pause_next = (pause * 2).min(MAX_SETTLING_PAUSE);
                self.phase = Phase::Settling { horizon, pause: pause_next, passed };
                if passed { now } else { now + pause }
            }
            Phase::Asleep { .. } => self.rest(now).await,
        }
    }

    /// How long to sleep: until the next row is due, or the safety poll.
    async fn rest(&mut self, now: Instant) -> Instant {
        let was_watchful = self.phase == (Phase::Asleep { watchful: true });
        let watchful = self.doorbell.held_by_another().await.unwrap_or(true);
        if was_watchful && !watchful {
            // Whoever kept the bell silent is gone, perhaps killed: what it silenced must end first.
            if let Ok(horizon) = self.doorbell.open().await {
                self.phase = Phase::Settling { horizon, pause: MIN_SETTLING_PAUSE, passed: false };
                return now;
            }
        }
        self.phase = Phase::Asleep { watchful };
        let poll =
            if watchful { WATCHFUL_POLL.min(self.settings.safety_poll) } else { self.settings.safety_poll };
        match self.outbox.next_due().await {
            // A row that is due but was not claimed is held by somebody, or its lane is full.
            Ok(Some(due)) if due < poll => {
                self.alarm = "due";
                now + due.max(MIN_DUE_PAUSE)
            }
            Ok(_) => {
                self.alarm = "safety_poll";
                now + poll
            }
            Err(_) => now + OUTAGE_PAUSE,
        }
    }

    pub(super) fn wake_up(&mut self, cause: &'static str) {
        counter!(names::WAKEUPS, "cause" => cause).increment(1);
        self.last_busy = Instant::now();
        self.next_look = self.last_busy;
        self.stay_awake();
    }

    /// Asks for silence, unless that was done already.
    fn stay_awake(&mut self) {
        if self.phase != Phase::Awake {
            self.phase = Phase::Awake;
            self.doorbell.close();
        }
    }
}

/// While the bell is silent we are the only ones who look.
const LINGER_POLL: Duration = Duration::from_millis(2);
const MIN_SETTLING_PAUSE: Duration = Duration::from_millis(2);
/// A seller's long transaction holds the horizon back; looking more often does not end it.
const MAX_SETTLING_PAUSE: Duration = Duration::from_secs(1);
/// While another daemon silences the bell.
const WATCHFUL_POLL: Duration = Duration::from_secs(1);
const MIN_DUE_PAUSE: Duration = Duration::from_millis(50);
