//! One attempt, from the prepared webhook to the verdict on what came of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::judge::{Facts, RetryPolicy};
use crate::metrics as names;
use crate::outbox::{Attempt, Claim, LeaseToken, RowId, Settlement};
use crate::webhook::{FailureReason, Prepared, Sender, Signer};

/// What the worker reads from the world: chance and the time of day.
pub trait World: Send + Sync + 'static {
    /// A number in `0.0..1.0`.
    fn chance(&self) -> f64;
    /// The time of day, for signatures and the attempt log.
    fn now(&self) -> SystemTime;
}

/// What every attempt is made with.
pub(super) struct Means<W> {
    pub(super) sender: Sender,
    pub(super) signer: Arc<Signer>,
    pub(super) world: Arc<W>,
    pub(super) policy: RetryPolicy,
    pub(super) deadline: Duration,
}

/// An attempt that has ended, and what metrics need of it.
pub(super) struct Settled {
    pub(super) settlement: Settlement,
    pub(super) owed_for: Duration,
}

/// What an attempt needs of its claim.
pub(super) struct Ticket {
    row: RowId,
    lease: LeaseToken,
    attempt: u32,
    since_first: Duration,
    owed_for: Duration,
}

impl Ticket {
    pub(super) fn of(claim: &Claim) -> Self {
        Self {
            row: claim.row,
            lease: claim.lease,
            attempt: claim.attempt,
            since_first: claim.since_first,
            owed_for: claim.owed_for,
        }
    }
}

/// One attempt, from the prepared webhook to its settlement.
pub(super) async fn attempt<W: World>(means: &Means<W>, prepared: &Prepared, ticket: Ticket) -> Settled {
    let (started_at, began) = (means.world.now(), Instant::now());
    let outcome = means.sender.send(prepared, &means.signer, started_at, means.deadline).await;
    let duration = began.elapsed();
    let facts =
        Facts { attempt: ticket.attempt, since_first: ticket.since_first, chance: means.world.chance() };
    let (verdict, reason) = (means.policy.judge(&outcome, facts), outcome.reason());
    let status = outcome.status();
    names::observe_attempt(duration, reason);
    tracing::info!(
        verdict = verdict.as_str(),
        status,
        reason = reason.map(FailureReason::as_str),
        duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        "attempt ended"
    );
    Settled {
        owed_for: ticket.owed_for + duration,
        settlement: Settlement {
            row: ticket.row,
            lease: ticket.lease,
            verdict,
            reason,
            attempt: Some(Attempt { started_at, duration, status, body_bytes: prepared.body.len() }),
        },
    }
}
