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
mod claimed;
mod columns;
mod loan;
mod room;
mod settlement;

use std::time::Duration;

use tokio_postgres::error::Severity;
use uuid::Uuid;

use columns::Columns;

pub use both::Outboxes;
pub use claimed::{Claim, Claimed, Entered, Transition};
pub(crate) use loan::{Loan, patiently};
pub use native::{CircuitPolicy, NativeOptions, NativeOutbox};
pub(crate) use room::CHANGES;
pub use room::{Held, Look, Room};
pub use sealed::{SealedOptions, SealedOutbox};
pub use settlement::{Attempt, SettledRows, Settlement, Verdict};

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

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Wakes whoever sleeps (the payload is the listener's `HELP`); rung from a connection of our own, never in
/// a seller's transaction.
const RING: &str = "SELECT pg_notify('taskbell', 'help')";
