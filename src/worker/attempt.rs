//! One attempt, from the prepared webhook to the verdict on what came of it.

use std::sync::{Arc, Once};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::judge::{Facts, RetryPolicy};
use crate::metrics as names;
use crate::outbox::{Attempt, Claim, LeaseToken, RowId, Settlement, Verdict};
use crate::task::Authentication;
use crate::webhook::{FailureReason, Outcome, Prepared, Sender, Signer, TraceContext};

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

impl<W: World> Means<W> {
    fn facts(&self, ticket: &Ticket) -> Facts {
        let Ticket { row, attempt, since_first, .. } = *ticket;
        Facts { source: row.source, attempt, since_first, chance: self.world.chance() }
    }
}

/// An attempt that has ended, and what metrics need of it.
pub(super) struct Settled {
    pub(super) settlement: Settlement,
    pub(super) owed_for: Duration,
    /// When its lease runs out at the earliest.
    pub(super) until: Instant,
    pub(super) writing: Writing,
}

impl Settled {
    /// The end of a claim for which nothing was sent.
    pub(super) fn without_attempt(ticket: &Ticket, verdict: Verdict, reason: Option<FailureReason>) -> Self {
        let Ticket { row, lease, owed_for, until, .. } = *ticket;
        let settlement = Settlement { row, lease, verdict, reason, attempt: None };
        Self { settlement, owed_for, until, writing: Writing::Due }
    }
}

/// How far the settlement has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    /// Not tried yet.
    Due,
    /// Tried, and not written.
    Refused,
    /// Tried, and perhaps written: the answer was lost.
    InDoubt,
}

/// What an attempt needs of its claim.
#[derive(Clone, Copy)]
pub(super) struct Ticket {
    pub(super) row: RowId,
    lease: LeaseToken,
    pub(super) attempt: u32,
    since_first: Duration,
    owed_for: Duration,
    until: Instant,
}

impl Ticket {
    pub(super) fn of(claim: &Claim) -> Self {
        Self {
            row: claim.row,
            lease: claim.lease,
            attempt: claim.attempt,
            since_first: claim.since_first,
            owed_for: claim.owed_for,
            until: claim.until,
        }
    }
}

/// One attempt, from the prepared webhook to its settlement.
pub(super) async fn attempt<W: World>(means: &Means<W>, prepared: &Prepared, ticket: Ticket) -> Settled {
    let (started_at, began) = (means.world.now(), Instant::now());
    if began + means.deadline > ticket.until {
        // We were held up since the claim, perhaps frozen: it would outlive its lease.
        tracing::warn!("too late to begin inside the lease, given back");
        return Settled::without_attempt(&ticket, Verdict::Unclaim { after: Duration::ZERO }, None);
    }
    let trace = TraceContext::of(&prepared.key, ticket.lease.0);
    let outcome = means.sender.send(prepared, &means.signer, trace, started_at, means.deadline).await;
    let duration = began.elapsed();
    let (verdict, reason) = (means.policy.judge(&outcome, means.facts(&ticket)), outcome.reason());
    let status = outcome.status();
    names::observe_attempt(duration, reason);
    if let Outcome::OwnFault(why) = &outcome {
        tracing::error!(%why, "a webhook waits for us");
    }
    let scheme = prepared.authentication.as_ref().map(Authentication::scheme);
    if let Some(scheme) =
        scheme.filter(|_| !matches!(outcome, Outcome::OwnFault(_) | Outcome::AddressRefused))
    {
        names::observe_legacy(scheme);
        DEPRECATION.call_once(|| {
            tracing::warn!(
                scheme,
                "webhooks go out with authentication that AdCP 4.0 removes: buyers chose it"
            );
        });
    }
    tracing::info!(
        verdict = verdict.as_str(),
        status,
        reason = reason.map(FailureReason::as_str),
        legacy_authentication = scheme,
        server.address = prepared.url.target().url().host_str(),
        trace_id = trace.trace_id(),
        span_id = trace.span_id(),
        duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        "attempt ended"
    );
    Settled {
        owed_for: ticket.owed_for + duration,
        until: ticket.until,
        writing: Writing::Due,
        settlement: Settlement {
            row: ticket.row,
            lease: ticket.lease,
            verdict,
            reason,
            attempt: Some(Attempt { started_at, duration, status, body_bytes: prepared.body.len() }),
        },
    }
}

/// The settlement of a row that nothing was sent for.
pub(super) fn unsent<W: World>(outcome: &Outcome, ticket: &Ticket, task: &str, means: &Means<W>) -> Settled {
    let (verdict, reason) = (means.policy.judge(outcome, means.facts(ticket)), outcome.reason());
    if let Some(reason) = reason {
        names::observe_unsent(reason);
    }
    let row = ticket.row.id;
    match outcome {
        Outcome::Unsendable(why) => {
            tracing::error!(row.id = row, task.id = task, %why, "no webhook can be made of this row");
        }
        Outcome::OwnFault(why) => {
            tracing::error!(row.id = row, task.id = task, %why, "a webhook waits for us");
        }
        _ => tracing::debug!(row.id = row, task.id = task, verdict = verdict.as_str(), "nothing was sent"),
    }
    Settled::without_attempt(ticket, verdict, reason)
}

/// Said once for each process; `taskbell_legacy_attempts_total` counts.
static DEPRECATION: Once = Once::new();
