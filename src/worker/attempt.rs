//! One attempt, from the prepared webhook to the verdict on what came of it.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::judge::{Facts, RetryPolicy};
use crate::metrics as names;
use crate::outbox::{Attempt, Claim, LeaseToken, RowId, Settlement};
use crate::webhook::{FailureReason, Outcome, Prepared, Sender};

/// What the worker reads from the world: chance and the time of day.
pub trait World: Send + Sync + 'static {
    /// A number in `0.0..1.0`.
    fn chance(&self) -> f64;
    /// The time of day, for signatures and the attempt log.
    fn now(&self) -> SystemTime;
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
pub(super) async fn attempt<W: World>(
    sender: &Sender,
    world: &W,
    policy: &RetryPolicy,
    prepared: &Prepared,
    ticket: Ticket,
) -> Settled {
    let (started_at, began) = (world.now(), Instant::now());
    let outcome = sender.send(prepared, started_at).await;
    let duration = began.elapsed();
    let facts = Facts { attempt: ticket.attempt, since_first: ticket.since_first, chance: world.chance() };
    let (verdict, reason) = policy.judge(&outcome, facts);
    let status = match outcome {
        Outcome::Answered { status, .. } => Some(status),
        _ => None,
    };
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
