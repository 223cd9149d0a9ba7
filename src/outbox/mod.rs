//! The tables of webhooks owed: claim under a lease, settle under its token.
//!
//! [`Outbox`] is the seam between the worker and a table: ours ([`native`]), the Python SDK's
//! ([`sealed`]), or both at once ([`Outboxes`]). A claim is a timed right to make one
//! attempt; settling matches row *and* token, so whoever lost the lease changes nothing. The
//! database's clock says what is due, who holds a lease and when the horizon has passed.
//!
//! ```text
//!              claim                  acknowledge, supersede
//!   pending ───────────▶ in_flight ───────────────▶ (the journal: delivered, superseded)
//!      ▲                  │  │  └── dead letter ──▶ invalid
//!      └──── release ─────┘  └ release past the horizon, sweep ──▶ expired
//!            lease ran out: claimable again
//!   expired | invalid ── an operator retries ──▶ pending
//!                     └─ an operator cancels ──▶ (the journal: cancelled)
//! ```

pub mod native;
pub mod sealed;
mod both;
mod columns;
mod loan;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_postgres::error::Severity;
use uuid::Uuid;

use crate::webhook::{FailureReason, Outcome, Prepared};

use columns::Columns;

pub use both::Outboxes;
pub(crate) use loan::{Loan, patiently};
pub use native::{CircuitPolicy, NativeOptions, NativeOutbox};
pub use sealed::{SealedOptions, SealedOutbox};

/// A table of webhooks owed.
pub trait Outbox: Send + Sync + 'static {
    /// Takes due rows, each for one attempt, and the state changes that nobody is owed a webhook
    /// for. A transition is handed out once, ever.
    fn claim(&self, room: &Room) -> impl Future<Output = Result<Claimed, OutboxError>> + Send;

    /// Writes the verdicts of attempts.
    fn settle(
        &self,
        settlements: &[Settlement],
    ) -> impl Future<Output = Result<SettledRows, OutboxError>> + Send;

    /// What came before each of these changes: the state that the task was in, and since when; `None` where
    /// that is not in the journal.
    fn before(
        &self,
        changes: &[Transition],
    ) -> impl Future<Output = Result<Vec<Option<Entered>>, OutboxError>> + Send;

    /// How long until the next row is due; zero when one is due now, `None` when none waits.
    fn next_due(&self) -> impl Future<Output = Result<Option<Duration>, OutboxError>> + Send;

    /// Expires rows whose horizon has passed; how many.
    fn expire(&self) -> impl Future<Output = Result<u64, OutboxError>> + Send;

    /// Rings the other daemons: there is more here than one of them can take.
    fn ring(&self) -> impl Future<Output = Result<(), OutboxError>> + Send;
}

/// Which table a webhook is owed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// `taskbell.outbox`.
    Native,
    /// The AdCP Python SDK's, whose rows are encrypted and whose rules are the SDK's.
    Sealed,
}

impl Source {
    /// The word in logs, metrics and the attempt log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Sealed => "sealed",
        }
    }
}

/// Identifies a row of an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId {
    /// The table.
    pub source: Source,
    /// Its key there.
    pub id: i64,
}

impl RowId {
    /// A row of `taskbell.outbox`.
    #[must_use]
    pub fn native(id: i64) -> Self {
        Self { source: Source::Native, id }
    }

    /// A row of the SDK's outbox.
    #[must_use]
    pub fn sealed(id: i64) -> Self {
        Self { source: Source::Sealed, id }
    }
}

/// Proof of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseToken(pub Uuid);

/// A destination: `scheme://host:port`, lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lane(pub String);

/// How much a claim may take.
#[derive(Debug, Clone)]
pub struct Room {
    /// Rows in all.
    pub rows: usize,
    /// Rows for one lane, counting what is in flight there already.
    pub per_lane: usize,
    /// Rows of one lane that are looked at, not counting those in flight: no more than its bytes may hold.
    pub at_a_lane: usize,
    /// Bytes of documents in all; a single row is taken whatever its size.
    pub bytes: usize,
    /// The same for one lane. A larger row counts as so much.
    pub bytes_per_lane: usize,
    /// Lanes with attempts in flight.
    pub in_flight: Vec<(Lane, Held)>,
    /// Rows that failed before: some slots are kept for first attempts.
    pub retries: usize,
    /// State changes that nobody is owed a webhook for.
    pub changes: usize,
    /// Where to look.
    pub look: Look,
}

/// What one lane has in flight.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Attempts.
    pub rows: usize,
    /// Bytes of their bodies, as far as they count.
    pub bytes: usize,
}

impl Held {
    /// Whether a lane with so much in flight takes no more.
    #[must_use]
    pub fn fills(self, per_lane: usize, bytes_per_lane: usize) -> bool {
        self.rows >= per_lane || self.bytes >= bytes_per_lane
    }
}

impl Room {
    /// Room for so many rows, so many of them to one lane, without another limit, wherever they stand.
    #[must_use]
    pub fn of(rows: usize, per_lane: usize) -> Self {
        Self {
            rows,
            per_lane,
            at_a_lane: usize::MAX,
            bytes: usize::MAX,
            bytes_per_lane: usize::MAX,
            in_flight: Vec::new(),
            retries: usize::MAX,
            changes: CHANGES,
            look: Look::Whole,
        }
    }

    /// Whether a lane takes no more.
    fn is_full(&self, lane: &str) -> bool {
        self.full_lanes().any(|full| full == lane)
    }

    /// What is left of it after a claim.
    fn after(&self, claims: &[Claim]) -> Self {
        let mut lanes: HashMap<_, Held> = self.in_flight.iter().cloned().collect();
        let mut left = self.clone();
        for claim in claims {
            let weight = claim.weight(self.bytes_per_lane);
            let held = lanes.entry(claim.lane.clone()).or_default();
            held.rows += 1;
            held.bytes += weight;
            left.bytes = left.bytes.saturating_sub(weight);
            left.rows = left.rows.saturating_sub(1);
            left.retries = left.retries.saturating_sub(usize::from(claim.attempt > 1));
        }
        if left.bytes == 0 {
            left.rows = 0;
        }
        left.in_flight = lanes.into_iter().collect();
        left
    }

    /// Whether a claim has taken all that there was room for, in all or in some lane.
    fn is_used_up_by(&self, claims: &[Claim]) -> bool {
        let left = self.after(claims);
        let full: HashSet<&str> = left.full_lanes().collect();
        left.rows == 0 || claims.iter().any(|claim| full.contains(claim.lane.0.as_str()))
    }

    /// The lanes that take no more.
    fn full_lanes(&self) -> impl Iterator<Item = &str> {
        let full = |(_, held): &&(Lane, Held)| held.fills(self.per_lane, self.bytes_per_lane);
        self.in_flight.iter().filter(full).map(|(lane, _)| lane.0.as_str())
    }

    /// The lanes in flight as a statement takes them: full ones have all the rows there may be.
    fn busy(&self) -> (Vec<&str>, Vec<i64>, Vec<i64>) {
        let (mut lanes, mut rows, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for (lane, held) in &self.in_flight {
            lanes.push(lane.0.as_str());
            let full = held.fills(self.per_lane, self.bytes_per_lane);
            rows.push(count(if full { held.rows.max(self.per_lane) } else { held.rows }));
            bytes.push(count(held.bytes));
        }
        (lanes, rows, bytes)
    }
}

/// Where a claim looks for due rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Everywhere: what it does not find, nobody may claim now.
    Whole,
    /// Everywhere; while that takes the database long, at places that are known only past what was seen there, but
    /// for some of them in turn. No proof of anything; what one such look misses, a later one finds.
    Wide,
    /// Where rows have come from lately, and only past those: quick, but no proof of anything.
    Quick,
    /// Where the bell said.
    At {
        /// The numbers that rang, of `taskbell.bell_of(lane, account)`.
        places: Vec<i64>,
        /// Whether state changes rang that nobody is owed a webhook for.
        changes: bool,
    },
}

/// What one claim brought.
#[derive(Debug, Default)]
pub struct Claimed {
    /// State changes seen for the first time, in the order in which they were recorded.
    pub transitions: Vec<Transition>,
    /// Rows to attempt now.
    pub claims: Vec<Claim>,
    /// Some place gave all that it had room for: it may have more.
    pub more: bool,
    /// Some place where the bell said that something is brought nothing.
    pub missed: bool,
    /// How many changes have been recorded in all, rolled back ones included; `None` where that was not read.
    pub recorded: Option<i64>,
    /// Why there may be more than this. What stands above is ours all the same.
    pub fault: Option<OutboxError>,
}

/// One state change of one task, to be observed once.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// Its number: later changes of a task have higher ones.
    pub id: i64,
    /// The task, within its table.
    pub task: (i16, String),
    /// Its type as stored; not yet bounded to the labels that metrics may carry.
    pub task_type: String,
    /// The state it left; `None` when the task was inserted.
    pub from: Option<String>,
    /// The state it entered.
    pub to: String,
    /// When, by the database's clock.
    pub at: SystemTime,
    /// When the task was created, by its writer's clock.
    pub task_created_at: Option<SystemTime>,
}

/// That a task entered a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// The number of the change.
    pub id: i64,
    /// The state.
    pub state: String,
    /// When, by the database's clock.
    pub at: SystemTime,
}

/// A row under our lease.
#[derive(Debug)]
pub struct Claim {
    /// The row.
    pub row: RowId,
    /// The right to settle it.
    pub lease: LeaseToken,
    /// When the lease runs out at the earliest: counted from before we asked for it.
    pub until: Instant,
    /// The task, for logs.
    pub task_id: String,
    /// Its type as stored.
    pub task_type: String,
    /// Where it goes.
    pub lane: Lane,
    /// This attempt's number, from 1.
    pub attempt: u32,
    /// Since the first attempt began; zero on the first.
    pub since_first: Duration,
    /// From the first attempt to the moment after which none is made.
    pub horizon: Duration,
    /// How long the webhook has been owed, by the database's clock.
    pub owed_for: Duration,
    /// Whether it is claimed for the first time ever; an attempt that was given back is not counted,
    /// and so attempts can be numbered 1 more than once.
    pub is_new: bool,
    /// What to send, or what the attempt comes to without sending anything.
    pub prepared: Result<Prepared, Outcome>,
}

impl Claim {
    /// The size of its body; zero where nothing is sent.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.prepared.as_ref().map_or(0, |prepared| prepared.body.len())
    }

    /// What its body counts for, where a lane may have so many bytes.
    #[must_use]
    pub fn weight(&self, bytes_per_lane: usize) -> usize {
        self.body_bytes().min(bytes_per_lane)
    }
}

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
    fn unwritten(&mut self, settlements: &[&Settlement], fault: OutboxError) {
        self.unwritten.extend(settlements.iter().map(|settlement| settlement.row));
        self.fault = Some(fault);
    }

    fn extend(&mut self, more: Self) {
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

/// Why the outbox could not be read or written. Everything owed is still owed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// No connection could be had from the pool.
    #[error("no connection to the database")]
    Pool(#[from] deadpool_postgres::PoolError),
    /// A statement failed.
    #[error("the database refused a statement")]
    Database(#[from] tokio_postgres::Error),
    /// No answer, although the server ends statements that take too long.
    #[error("the database does not answer")]
    Silent,
}

impl OutboxError {
    /// Whether the database works and refused what was asked.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Database(error) if error.as_db_error().is_some()) && !self.leaves_doubt()
    }

    /// Whether what was asked may have been done all the same: the answer was lost, or its
    /// session ended.
    #[must_use]
    pub fn leaves_doubt(&self) -> bool {
        match self {
            Self::Pool(_) => false,
            Self::Silent => true,
            Self::Database(error) => error.as_db_error().is_none_or(|answer| {
                matches!(answer.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
            }),
        }
    }
}

/// State changes in one go: enough to keep up with any seller, small enough to stay a short statement.
pub(crate) const CHANGES: usize = 500;

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Wakes whoever sleeps (the payload is the listener's `HELP`); rung from a connection of our own, never in
/// a seller's transaction.
const RING: &str = "SELECT pg_notify('taskbell', 'help')";
