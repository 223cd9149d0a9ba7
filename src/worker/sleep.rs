//! When to look next, and where: awake, dozing, asleep. The states are told in
//! [`crate::listener::Doorbell`].

use std::collections::VecDeque;
use std::time::Duration;

use metrics::counter;
use tokio::time::Instant;

use super::attempt::World;
use super::dozing::MAX_DOZING_PAUSE;
use super::exchange::Underway;
use super::{OUTAGE_PAUSE, Worker};
use crate::listener::{Heard, Horizon};
use crate::metrics as names;
use crate::outbox::{Look, Outbox, OutboxError};

/// Where the worker stands between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The bell is silent, or was asked to be; we look by ourselves.
    Awake,
    /// The bell rings again, but transactions that stayed silent may still be open.
    Dozing {
        horizon: Horizon,
        pause: Duration,
        /// Whether the horizon had passed before the last look.
        passed: bool,
        /// Whether another daemon has kept the bell silent since then.
        held: bool,
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

/// What an asleep worker has asked the database, beside its looks.
#[derive(Debug)]
pub(super) struct Asked {
    /// Whether another daemon keeps the bell silent.
    held: bool,
    /// How many commits of sellers wait for one that rings.
    in_line: i64,
    /// When the next row is due; `None` where that was not asked.
    next_due: Option<Result<Option<Duration>, OutboxError>>,
    /// How long that question took.
    took: Duration,
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// When to look next: while we are awake not before a rest is over.
    pub(super) fn look_at(&self) -> Instant {
        if self.phase == Phase::Awake { self.next_look.max(self.rests_until) } else { self.next_look }
    }

    /// Whether sellers go first at the moment.
    pub(super) fn is_resting(&self) -> bool {
        self.phase == Phase::Awake && Instant::now() < self.rests_until
    }

    /// What to look at now, if anything.
    pub(super) fn wanted_look(&mut self) -> Option<Look> {
        let now = Instant::now();
        if self.is_resting() {
            return None;
        }
        let heard = std::mem::take(&mut self.heard);
        let it_is_time = now >= self.next_look || heard.anywhere;
        if self.phase == Phase::Awake {
            // Only every now and then everywhere.
            let look = if now < self.next_wide { Look::Quick } else { Look::Wide };
            return it_is_time.then_some(look);
        }
        // Whoever rang goes first; what is due besides comes next, also where the bell never ends.
        let turn = self.claims.rang && now >= self.next_look && now >= self.next_wide;
        if !heard.is_nothing() && !heard.anywhere {
            if !turn {
                return Some(Look::At { places: heard.places.into_iter().collect(), changes: heard.changes });
            }
            self.heard = heard;
        }
        if !it_is_time {
            return None;
        }
        // Only a look at everything can say that it is time to sleep, or that there is nothing.
        let is_proof = matches!(self.phase, Phase::Asleep { .. } | Phase::Dozing { passed: true, .. });
        if is_proof && now >= self.next_whole {
            return Some(Look::Whole);
        }
        if now < self.next_wide && self.claims.freed {
            return Some(Look::Quick);
        }
        self.next_look = self.next_wide;
        (now >= self.next_wide).then_some(Look::Wide)
    }

    /// A look took so long: when the next ones everywhere may be.
    pub(super) fn note_look(&mut self, look: &Look, took: Duration) {
        let now = Instant::now();
        let rest = (took * WIDE_REST).max(MIN_WIDE_PAUSE);
        match look {
            Look::Whole => {
                self.next_whole = now + rest.min(MAX_WHOLE_PAUSE);
                // Which leaves out what made that long.
                self.next_wide = now + MIN_WIDE_PAUSE;
                self.wide_again = self.next_wide;
            }
            Look::Wide => {
                self.next_wide = now + rest.min(MAX_WIDE_PAUSE);
                self.wide_again = now + took;
            }
            Look::Quick | Look::At { .. } => {}
        }
    }

    /// Decides when to look next, after a look that took so long.
    pub(super) fn after(&mut self, look: &Look, found: bool, took: Duration) -> Instant {
        self.note_look(look, took);
        let now = Instant::now();
        if found {
            return self.after_finding(now, look);
        }
        let by_bell = matches!(look, Look::At { .. });
        match self.phase {
            // Nothing could be taken but changes, so that it proves nothing.
            Phase::Awake | Phase::Dozing { .. } if !self.had_room() => now + CALM,
            Phase::Awake => self.after_nothing_awake(now, look, took),
            // A closed circuit, or somebody else took it; or a transaction at another place.
            Phase::Asleep { .. } | Phase::Dozing { .. } if by_bell => self.next_look.min(now + CALM),
            // Where a slot came free. What ended meanwhile left others: with a pause here a backlog at one destination
            // goes out at 997 a second instead of 1,534.
            Phase::Asleep { .. } | Phase::Dozing { .. } if *look == Look::Quick => now,
            Phase::Dozing { horizon, passed, held, .. } => {
                self.after_nothing_dozing(now, look, horizon, passed, held)
            }
            Phase::Asleep { .. } => {
                self.ask_when_due(now);
                now + self.settings.safety_poll
            }
        }
    }

    fn after_finding(&mut self, now: Instant, look: &Look) -> Instant {
        let by_bell = matches!(look, Look::At { .. });
        if matches!(self.phase, Phase::Asleep { .. }) && !by_bell && now >= self.alarm.1 {
            counter!(names::WAKEUPS, "cause" => self.alarm.0).increment(1);
        }
        // Whoever is not silent has been counted when he rang.
        let silent = self.phase == Phase::Awake;
        if self.brought_much() || (silent && self.pace.is_quick(now, self.brought())) {
            self.last_busy = now;
            self.stay_awake();
        }
        let full = self.free_slots() == 0;
        match self.phase {
            // The bell is not silent: whatever is committed from now on rings.
            Phase::Asleep { .. } | Phase::Dozing { .. } if by_bell && !self.claims.missed => self.next_look,
            Phase::Asleep { .. } | Phase::Dozing { .. } if by_bell => self.next_look.min(now + CALM),
            Phase::Asleep { .. } => now + CALM,
            // What ends makes us look; until then there may be changes.
            _ if full => now + CALM,
            Phase::Awake if *look == Look::Quick && self.claims.walk_was_full && !self.claims.was_full => {
                // What is known does not fill the slots.
                self.next_wide = self.next_wide.min(self.wide_again);
                now
            }
            // Rows may already wait behind the ones just taken.
            _ => now,
        }
    }

    fn after_nothing_awake(&mut self, now: Instant, look: &Look, took: Duration) -> Instant {
        if *look == Look::Quick && self.claims.walk_was_full {
            self.next_wide = now;
            return now;
        }
        if now - self.last_busy < self.settings.linger {
            return now + LINGER_POLL.max(took);
        }
        // The bell may be silent until that is answered.
        self.begin_opening();
        now + if self.bell.is_cut_off() { CALM } else { LINGER_POLL }.max(took)
    }

    fn after_nothing_dozing(
        &mut self,
        now: Instant,
        look: &Look,
        horizon: Horizon,
        passed: bool,
        held: bool,
    ) -> Instant {
        if !passed {
            self.begin_passing(horizon);
            return now + MAX_DOZING_PAUSE;
        }
        if *look != Look::Whole {
            return self.next_whole.min(now + MAX_DOZING_PAUSE);
        }
        // The horizon had passed before the look that found nothing: nobody is silent any more.
        tracing::debug!("asleep");
        // If that one is gone by the next question, what it silenced must end first.
        self.phase = Phase::Asleep { watchful: held };
        self.ask_when_due(now);
        now + self.settings.safety_poll
    }

    /// Asks how things stand, unless that is being asked.
    pub(super) fn begin_asking(&mut self) {
        if !matches!(self.phase, Phase::Asleep { .. }) {
            // Whoever falls asleep asks.
            self.next_question = None;
            return;
        }
        if self.asking.is_some() || self.next_question.is_none_or(|at| Instant::now() < at) {
            return;
        }
        // What others' transactions keep makes that question long; then a retry may be late by some of it.
        let next_due = self.wants_due && Instant::now() >= self.next_due_question;
        self.wants_due &= !next_due;
        self.next_question = self.wants_due.then_some(self.next_due_question);
        let (doorbell, outbox) = (self.doorbell.clone(), self.outbox.clone());
        let brisk = self.pace.is_brisk(Instant::now());
        self.asking = Some(Underway::begin(async move {
            let held = doorbell.held_by_another().await.unwrap_or(true);
            let in_line = if brisk { doorbell.in_line().await.unwrap_or(0) } else { 0 };
            let began = Instant::now();
            let next_due = if next_due { Some(outbox.next_due().await) } else { None };
            Ok(Asked { held, in_line, next_due, took: began.elapsed() })
        }));
    }

    /// Draws the consequences: how long to sleep, until the next row is due or the safety poll.
    pub(super) fn asked(&mut self, answer: Result<Asked, OutboxError>) {
        let now = Instant::now();
        if let Ok(Asked { next_due: Some(answer), took, .. }) = &answer {
            // What did not come says nothing of how long it takes.
            let most = if answer.is_ok() { MAX_WHOLE_PAUSE } else { MAX_WIDE_PAUSE };
            self.next_due_question = now + (*took * WIDE_REST).min(most);
        }
        let Phase::Asleep { watchful: was_watchful } = self.phase else { return };
        let Ok(Asked { held, in_line, next_due, .. }) = answer else {
            self.next_look = self.next_look.min(now + OUTAGE_PAUSE);
            return;
        };
        // On a disk or with a standby so slow that none of the commits that ring can be quick.
        if in_line >= MANY_IN_LINE {
            self.last_busy = now;
            self.stay_awake();
            self.look_now();
            return;
        }
        if was_watchful && !held {
            // Whoever kept the bell silent is gone, perhaps killed: what it silenced must end first.
            self.begin_opening();
            return;
        }
        self.phase = Phase::Asleep { watchful: held };
        let poll =
            if held { WATCHFUL_POLL.min(self.settings.safety_poll) } else { self.settings.safety_poll };
        let (cause, at) = match next_due {
            // A row that is due but was not claimed is held by somebody, or its lane is full.
            Some(Ok(Some(due))) if due < poll => ("due", now + due.max(MIN_DUE_PAUSE)),
            Some(Ok(_)) => ("safety_poll", now + poll),
            Some(Err(_)) => ("safety_poll", now + OUTAGE_PAUSE),
            None if held => ("safety_poll", now + poll),
            None => return,
        };
        self.set_alarm(cause, at);
    }

    fn ask_when_due(&mut self, now: Instant) {
        self.wants_due = true;
        self.next_question = Some(now);
    }

    fn set_alarm(&mut self, cause: &'static str, at: Instant) {
        if at < self.next_look || self.alarm.1 <= Instant::now() {
            self.alarm = (cause, at);
        }
        self.next_look = self.next_look.min(at);
    }

    /// The bell rang, or the listener has just subscribed. It goes on ringing unless it rings too often.
    pub(super) fn heard(&mut self, heard: Heard) {
        let now = Instant::now();
        if heard.connected {
            counter!(names::WAKEUPS, "cause" => "connected").increment(1);
        }
        if heard.connected || heard.help {
            // What came before may have rung nobody: whoever falls asleep from here waits until it has ended.
            self.last_busy = now;
            self.stay_awake();
        }
        if heard.bells > 0 {
            counter!(names::WAKEUPS, "cause" => "bell").increment(heard.bells as u64);
            if self.pace.is_quick(now, heard.bells) {
                self.last_busy = now;
                self.stay_awake();
            }
        }
        if matches!(self.phase, Phase::Asleep { .. }) {
            // Whoever else heard that bell has asked for silence by then, if at all.
            self.next_question = self.next_question.into_iter().chain([now + CALM]).min();
        }
        if self.phase != Phase::Awake && !heard.anywhere {
            self.heard.extend(heard);
            return;
        }
        self.look_now();
    }
}

/// While the bell rings: for a look that is only to make sure.
pub(super) const CALM: Duration = Duration::from_millis(50);
/// So many in so short a time make a quick pace, some 250 a second: at that rate ringing costs sellers
/// more than our looking does, because each commit that rings keeps the others waiting through its fsync.
/// A few that come at once, after a pause, are no pace.
const QUICK: (usize, Duration) = (16, Duration::from_millis(60));
/// So many within this time may be all that a slow disk allows.
const BRISK: Duration = Duration::from_secs(1);
/// Commits that stand in line for the lock under which notifications are queued: then ringing is too dear.
const MANY_IN_LINE: i64 = 2;
/// While the bell is silent we are the only ones who look.
const LINGER_POLL: Duration = Duration::from_millis(2);
/// A look everywhere is paid with so many times its length of looks at what is known.
const WIDE_REST: u32 = 8;
const MIN_WIDE_PAUSE: Duration = Duration::from_millis(10);
const MAX_WIDE_PAUSE: Duration = Duration::from_secs(2);
const MAX_WHOLE_PAUSE: Duration = Duration::from_secs(60);
/// While another daemon silences the bell.
const WATCHFUL_POLL: Duration = Duration::from_secs(1);
const MIN_DUE_PAUSE: Duration = Duration::from_millis(50);
