//! How attempts end, and what became of that.

use std::time::{Duration, SystemTime};

use super::{LeaseToken, OutboxError, RowId};
use crate::webhook::FailureReason;

/// What became of the rows of a settle, where it was not what the verdict said.
#[derive(Debug, Default)]
pub struct SettledRows {
    /// Their lease was lost: nothing was written, because somebody else has the row now.
    pub lost: Vec<RowId>,
    /// Released, but due only after their horizon: dead letters now.
    pub expired: Vec<RowId>,
    /// Not written, as far as we know: to be tried again. `fault` says why.
    pub unwritten: Vec<RowId>,
    /// Circuits that successes have opened, or brought nearer to it: more may be claimed.
    pub healed: bool,
    /// What kept rows from being written.
    pub fault: Option<OutboxError>,
}

impl SettledRows {
    pub(super) fn unwritten(&mut self, settlements: &[&Settlement], fault: OutboxError) {
        self.unwritten.extend(settlements.iter().map(|settlement| settlement.row));
        self.fault = Some(fault);
    }

    pub(super) fn extend(&mut self, more: Self) {
        self.lost.extend(more.lost);
        self.expired.extend(more.expired);
        self.unwritten.extend(more.unwritten);
        self.healed |= more.healed;
        self.fault = self.fault.take().or(more.fault);
    }
}

/// The end of one attempt.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The row.
    pub row: RowId,
    /// The claim that this settles.
    pub lease: LeaseToken,
    /// What is to be done with the row.
    pub verdict: Verdict,
    /// What went wrong, if anything did. A dead letter always has a reason.
    pub reason: Option<FailureReason>,
    /// For the attempt log; `None` when nothing was attempted.
    pub attempt: Option<Attempt>,
}

/// What is to be done with a row after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Delivered.
    Acknowledge,
    /// Old news: settled without being sent.
    Supersede,
    /// Back to pending, due again after the delay.
    Release {
        /// The delay, from now.
        after: Duration,
    },
    /// Back to pending as if it had not been claimed: our own fault, or we are stopping.
    Unclaim {
        /// The delay, from now.
        after: Duration,
    },
    /// Given up, until an operator retries or cancels it.
    DeadLetter,
}

/// One line of the attempt log.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// When it began, by our clock.
    pub started_at: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// The size of the body.
    pub body_bytes: usize,
}

impl Verdict {
    /// The word in the attempt log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Acknowledge => "acknowledge",
            Self::Supersede => "supersede",
            Self::Release { .. } | Self::Unclaim { .. } => "release",
            Self::DeadLetter => "dead_letter",
        }
    }
}
