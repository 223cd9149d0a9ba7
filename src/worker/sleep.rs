//! When to look next: awake, settling, asleep. The states are told in [`crate::listener::Doorbell`].

use std::collections::VecDeque;
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

/// When the latest rows came, or the bells that told of them.
#[derive(Debug, Default)]
pub(super) struct Pace(VecDeque<Instant>);

impl Pace {
    /// Notes so many more. Whether sellers are better off in silence.
    fn is_quick(&mut self, now: Instant, more: usize) -> bool {
        let (many, within) = QUICK;
        for _ in 0..more.min(many) {
            self.0.push_back(now);
        }
        self.0.drain(..self.0.len().saturating_sub(many));
        self.0.len() == many && now - self.0[0] < within
    }

    /// Whether they come often enough for commits to get in each other's way.
    fn is_brisk(&self, now: Instant) -> bool {
        self.0.len() == QUICK.0 && now - self.0[0] < BRISK
    }
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// Decides when to look next.
    pub(super) async fn after(&mut self, found: bool) -> Instant {
        let now = Instant::now();
        let rung = self.rung;
        self.rung = found && rung;
        if found {
            let asleep = matches!(self.phase, Phase::Asleep { .. });
            if asleep && !rung && now >= self.alarm.1 {
                counter!(names::WAKEUPS, "cause" => self.alarm.0).increment(1);
            }
            if self.brought_much()
                || (!asleep && self.pace.is_quick(now, self.brought()))
                || (asleep && self.sellers_wait(now).await)
            {
                self.last_busy = now;
                self.stay_awake();
            }
            return match self.phase {
                // The bell is not silent: whatever is committed from now on rings.
                Phase::Asleep { .. } => now + CALM,
                // Rows may already wait behind the ones just taken.
                _ if self.attempts.len() < self.settings.concurrency => now,
                _ => now + self.settings.safety_poll,
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
            // Whoever else heard that bell has asked for silence by the next look, if at all.
            Phase::Asleep { .. } if rung => now + CALM,
            Phase::Asleep { .. } => self.rest(now).await,
        }
    }

    /// Whether commits that ring stand in line, on a disk or with a standby so slow that none of
    /// them can be quick.
    async fn sellers_wait(&mut self, now: Instant) -> bool {
        if !self.pace.is_brisk(now) || now - self.line_seen < LINE_PAUSE {
            return false;
        }
        self.line_seen = now;
        self.doorbell.in_line().await.is_ok_and(|waiting| waiting >= 2)
    }

    /// How long to sleep: until the next row is due, or the safety poll.
    async fn rest(&mut self, now: Instant) -> Instant {
        let was_watchful = self.phase == (Phase::Asleep { watchful: true });
        let watchful = self.doorbell.held_by_another().await.unwrap_or(true);
        if was_watchful && !watchful {
            // Whoever kept the bell silent is gone, perhaps killed: what it silenced must end first.
            return match self.doorbell.open().await {
                Ok(horizon) => {
                    self.phase = Phase::Settling { horizon, pause: MIN_SETTLING_PAUSE, passed: false };
                    now
                }
                // Asked again: we are still watchful.
                Err(_) => now + OUTAGE_PAUSE,
            };
        }
        self.phase = Phase::Asleep { watchful };
        let poll =
            if watchful { WATCHFUL_POLL.min(self.settings.safety_poll) } else { self.settings.safety_poll };
        match self.outbox.next_due().await {
            // A row that is due but was not claimed is held by somebody, or its lane is full.
            Ok(Some(due)) if due < poll => {
                self.alarm = ("due", now + due.max(MIN_DUE_PAUSE));
                self.alarm.1
            }
            Ok(_) => {
                self.alarm = ("safety_poll", now + poll);
                self.alarm.1
            }
            Err(_) => now + OUTAGE_PAUSE,
        }
    }

    /// The bell rang. It goes on ringing unless it rings too often.
    pub(super) fn rung(&mut self) {
        let now = Instant::now();
        counter!(names::WAKEUPS, "cause" => "bell").increment(1);
        if self.pace.is_quick(now, 1) {
            self.last_busy = now;
            self.stay_awake();
        }
        self.rung = true;
        self.look_now();
    }

    /// The listener has just subscribed: what came before may have rung nobody.
    pub(super) fn connected(&mut self) {
        counter!(names::WAKEUPS, "cause" => "connected").increment(1);
        self.last_busy = Instant::now();
        self.stay_awake();
        self.look_now();
    }

    /// Asks for silence, unless that was done already.
    fn stay_awake(&mut self) {
        if self.phase != Phase::Awake {
            self.phase = Phase::Awake;
            self.doorbell.close();
        }
    }
}

/// While the bell rings: for a look that is only to make sure.
pub(super) const CALM: Duration = Duration::from_millis(50);
/// So many in so short a time make a quick pace, some 250 a second: at that rate ringing costs sellers
/// more than our looking does, because each commit that rings keeps the others waiting through its fsync.
const QUICK: (usize, Duration) = (8, Duration::from_millis(30));
/// So many within this time may be all that a slow disk allows.
const BRISK: Duration = Duration::from_millis(500);
/// Between two looks at the line.
const LINE_PAUSE: Duration = Duration::from_millis(100);
/// While the bell is silent we are the only ones who look.
const LINGER_POLL: Duration = Duration::from_millis(2);
const MIN_SETTLING_PAUSE: Duration = Duration::from_millis(2);
/// A seller's long transaction holds the horizon back; looking more often does not end it.
const MAX_SETTLING_PAUSE: Duration = Duration::from_secs(1);
/// While another daemon silences the bell.
const WATCHFUL_POLL: Duration = Duration::from_secs(1);
const MIN_DUE_PAUSE: Duration = Duration::from_millis(50);
