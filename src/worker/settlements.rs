//! Settles, at most one under way: what has ended is written, together where nobody waits for it, and again
//! where it could not be.

use std::time::Duration;

use metrics::counter;
use tokio::time::Instant;

use super::attempt::{Settled, World, Writing};
use super::exchange::Underway;
use super::sleep::{CALM, Phase};
use super::{OUTAGE_PAUSE, Worker, chain};
use crate::metrics as names;
use crate::outbox::{Outbox, OutboxError, SettledRows, Settlement, Verdict};

/// The settle that is under way, and how the last ones went.
pub(super) struct Settlements {
    pub(super) underway: Option<Underway<SettledRows>>,
    /// What it writes.
    pub(super) being_written: Vec<Settled>,
    /// After one that failed, what it did not write waits.
    pub(super) again_at: Instant,
    /// When the last one was begun.
    wrote_at: Instant,
    /// Whether what was refused is tried next, where something else waits too.
    turn_of_refused: bool,
    /// Nothing waits for company any more.
    pub(super) winding_up: bool,
    /// The last one could write the outbox.
    pub(super) works: bool,
}

impl Default for Settlements {
    fn default() -> Self {
        Self {
            underway: None,
            being_written: Vec::new(),
            again_at: Instant::now(),
            wrote_at: Instant::now(),
            turn_of_refused: false,
            winding_up: false,
            works: true,
        }
    }
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// Writes what has ended, unless something is being written. What could not be written is tried
    /// again, until its lease runs out: after that it is somebody else's. What the database
    /// refused is tried again by itself, because it may be the one row that it refuses, and in turn with the rest.
    pub(super) fn begin_settle(&mut self) {
        if self.settlements.underway.is_some() || self.finished.is_empty() || self.gathers_until().is_some() {
            return;
        }
        let now = Instant::now();
        let again = now >= self.settlements.again_at;
        let (mut refused, mut others): (Vec<Settled>, Vec<Settled>) = std::mem::take(&mut self.finished)
            .into_iter()
            .partition(|ended| ended.writing == Writing::Refused);
        let new = others.iter().any(|ended| ended.writing == Writing::Due);
        let turn = again && !refused.is_empty() && (self.settlements.turn_of_refused || others.is_empty());
        let mut batch = Vec::new();
        if turn {
            batch.push(refused.remove(0));
        } else if new || again {
            batch.append(&mut others);
            self.settlements.wrote_at = now;
        }
        self.finished.append(&mut refused);
        self.finished.append(&mut others);
        if batch.is_empty() {
            return;
        }
        self.settlements.turn_of_refused = !turn;
        self.settlements.being_written = batch;
        let settlements: Vec<Settlement> =
            self.settlements.being_written.iter().map(|ended| ended.settlement.clone()).collect();
        let outbox = self.outbox.clone();
        self.settlements.underway = Some(Underway::begin(async move { outbox.settle(&settlements).await }));
    }

    /// Until when what has ended waits for company, if it does.
    fn gathers_until(&self) -> Option<Instant> {
        let now = Instant::now();
        if self.settlements.winding_up {
            return None;
        }
        // While we rest, one settle is kinder than many; a failure waits too, because nothing is claimed meanwhile.
        if now < self.rests_until && !self.attempts.is_empty() {
            return Some(self.rests_until);
        }
        let pause = self.settlements.wrote_at + GATHER_ENDED;
        if self.phase != Phase::Awake || now >= pause {
            return None;
        }
        // A failure may close a circuit: the sooner, the fewer rows fail after it.
        let failed =
            |ended: &&Settled| !matches!(ended.settlement.verdict, Verdict::Acknowledge | Verdict::Supersede);
        let due = || self.finished.iter().filter(|ended| ended.writing == Writing::Due);
        let many = due().count();
        (many > 0 && many < self.enough() && !due().any(|ended| failed(&ended))).then_some(pause)
    }

    /// When something may be written again.
    pub(super) fn settle_at(&self) -> Instant {
        self.gathers_until().unwrap_or(self.settlements.again_at)
    }

    /// Takes note of what a settle has written.
    pub(super) fn written(&mut self, answer: Result<SettledRows, OutboxError>) {
        let now = Instant::now();
        let mut rows = answer.unwrap_or_else(|error| SettledRows {
            unwritten: self.settlements.being_written.iter().map(|ended| ended.settlement.row).collect(),
            fault: Some(error),
            ..SettledRows::default()
        });
        let fault = rows.fault.take();
        let back = |ended: &Settled| {
            matches!(ended.settlement.verdict, Verdict::Release { .. } | Verdict::Unclaim { .. })
        };
        if rows.healed {
            // More of those lanes may be claimed.
            self.next_look = self.next_look.min(now + CALM);
        } else if self.settlements.being_written.iter().any(back) {
            // They come due again, and circuits may have closed.
            self.wants_due = true;
            self.next_question.get_or_insert(now + CALM);
        }
        let was_full = self.free_slots() == 0;
        self.settled(&rows, fault.as_ref().is_some_and(OutboxError::leaves_doubt));
        if was_full && self.free_slots() > 0 {
            // By what had ended and was not written.
            self.claims.freed = true;
            self.slots_are_free();
        }
        self.settlements.works = fault.is_none();
        self.publish_outbox_up();
        if let Some(error) = fault {
            tracing::error!(error = %chain(&error), rows = self.finished.len(), "the outbox could not be written");
            self.settlements.again_at = now + OUTAGE_PAUSE;
        }
    }

    /// Counts what was written; forgets what is settled or lost.
    fn settled(&mut self, rows: &SettledRows, doubt: bool) {
        for mut ended in std::mem::take(&mut self.settlements.being_written) {
            let row = ended.settlement.row;
            if rows.unwritten.contains(&row) && Instant::now() < ended.until {
                if ended.writing != Writing::InDoubt {
                    ended.writing = if doubt { Writing::InDoubt } else { Writing::Refused };
                }
                self.finished.push(ended);
            } else if rows.unwritten.contains(&row)
                || (rows.lost.contains(&row) && ended.writing != Writing::InDoubt)
            {
                counter!(names::LEASES_LOST).increment(1);
                tracing::warn!(row.id = row.id, "the lease was lost before the attempt was settled");
            } else if rows.expired.contains(&row) {
                names::observe_expired(1);
            } else {
                // Also one that an earlier try had written without our hearing of it.
                names::observe_verdict(ended.settlement.verdict, ended.owed_for);
            }
        }
    }
}

/// Between two settles of an awake worker, unless so many have ended that they fill one: a statement costs the
/// database a quarter of a millisecond besides what it does for its rows.
const GATHER_ENDED: Duration = Duration::from_millis(10);
