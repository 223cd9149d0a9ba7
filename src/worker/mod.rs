//! The loop: claim, attempt, judge, settle, and fall asleep without missing a row.
//!
//! It waits for whatever comes next: the bell, the end of an attempt, the answer to a claim or to a
//! settle, the time for another look. At most one claim and one settle are under way, and
//! neither waits for the other ([`claims`], [`settlements`]). Only what starts now is claimed, so no lease runs
//! out in memory behind a slow receiver; no connection is held while a request is on the wire. How the loop
//! sleeps is told in [`crate::listener::Doorbell`]; the states here are its states.

mod claims;
mod settlements;
mod exchange;
mod sleep;
mod dozing;
mod share;
mod courtesy;
mod attempt;
mod judge;
mod egress;
mod observe;
mod drain;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::histogram;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::listener::{Doorbell, Heard, Wakes};
use crate::metrics::{self as names, TaskTypes};
use crate::outbox::{Claim, Claimed, Held, Lane, Outbox, Verdict};
use crate::webhook::{FailureReason, Sender, Signer};

use attempt::{Means, Settled, Ticket, attempt, unsent};
use claims::Claims;
use courtesy::Courtesy;
use dozing::Bell;
use egress::Egress;
use exchange::{Underway, answered};
use observe::Unmeasured;
use settlements::Settlements;
use share::Share;
use sleep::{Asked, Pace, Phase};

pub use attempt::World;
pub use judge::{Facts, RetryPolicy};

/// How the worker behaves.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Attempts in flight at once.
    pub concurrency: usize,
    /// Attempts in flight at once to one destination.
    pub per_lane: usize,
    /// Bytes of the bodies in flight at once. One lane may have an eighth of them, and what is
    /// larger than that counts as so much.
    pub payload: usize,
    /// How long it stays awake after the last busy moment, with the bell silent.
    pub linger: Duration,
    /// How long webhooks wait for sellers who keep the database busy.
    pub yield_for: Duration,
    /// How often it looks although nobody rang.
    pub safety_poll: Duration,
    /// How long a stop waits for attempts in flight; shorter than the lease.
    pub grace: Duration,
    /// For one whole attempt, from the DNS lookup to the end of the answer; shorter than the lease.
    pub deadline: Duration,
    /// When to try again.
    pub retry: RetryPolicy,
    /// The task types that metrics may name.
    pub task_types: TaskTypes,
}

/// Delivers what one outbox owes.
pub struct Worker<O, W> {
    outbox: Arc<O>,
    means: Arc<Means<W>>,
    doorbell: Doorbell,
    wakes: Wakes,
    settings: WorkerSettings,
    attempts: JoinSet<Settled>,
    in_flight: HashMap<Lane, Held>,
    /// Bytes of their bodies, as far as they count.
    payload: usize,
    started: HashMap<tokio::task::Id, Started>,
    /// How many of them had failed before.
    retries: usize,
    finished: Vec<Settled>,
    egress: Egress,
    courtesy: Courtesy,
    share: Share,
    /// Until when we look at nothing, for the sellers' sake.
    rests_until: Instant,
    claims: Claims,
    settlements: Settlements,
    /// How things stand, for who is asleep.
    asking: Option<Underway<Asked>>,
    bell: Bell,
    unmeasured: Unmeasured,
    next_look: Instant,
    /// When we may look everywhere.
    next_wide: Instant,
    /// The same where what is known does not suffice.
    wide_again: Instant,
    /// When we may look at everything, which others' transactions can make long.
    next_whole: Instant,
    /// What the bell rang for while we were not awake.
    heard: Heard,
    /// When we ask how things stand; `wants_due`: and when the next row is due.
    next_question: Option<Instant>,
    wants_due: bool,
    /// Not before this is the latter asked again.
    next_due_question: Instant,
    last_ring: Option<Instant>,
    outbox_up: watch::Sender<bool>,
    due_back: watch::Sender<Instant>,
    phase: Phase,
    last_busy: Instant,
    pace: Pace,
    /// What the timer of an asleep worker stands for, and when it is due.
    alarm: (&'static str, Instant),
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// A worker; [`Worker::run`] starts it.
    pub fn new(
        outbox: Arc<O>,
        world: Arc<W>,
        sender: Sender,
        signer: Arc<Signer>,
        doorbell: Doorbell,
        wakes: Wakes,
        settings: WorkerSettings,
    ) -> Self {
        let (policy, deadline) = (settings.retry.clone(), settings.deadline);
        Self {
            outbox,
            means: Arc::new(Means { sender, signer, world, policy, deadline }),
            doorbell,
            wakes,
            attempts: JoinSet::new(),
            in_flight: HashMap::new(),
            payload: 0,
            started: HashMap::new(),
            retries: 0,
            finished: Vec::new(),
            egress: Egress::default(),
            courtesy: Courtesy::default(),
            share: Share::of(settings.concurrency, settings.per_lane),
            rests_until: Instant::now(),
            claims: Claims::default(),
            settlements: Settlements::default(),
            asking: None,
            bell: Bell::default(),
            unmeasured: Unmeasured::default(),
            next_look: Instant::now(),
            next_wide: Instant::now(),
            wide_again: Instant::now(),
            next_whole: Instant::now(),
            heard: Heard::default(),
            next_question: None,
            wants_due: false,
            next_due_question: Instant::now(),
            last_ring: None,
            outbox_up: watch::Sender::new(false),
            due_back: watch::Sender::new(Instant::now()),
            phase: Phase::Asleep { watchful: true },
            last_busy: Instant::now(),
            pace: Pace::default(),
            alarm: ("safety_poll", Instant::now()),
            settings,
        }
    }

    /// Whether the last turn could read and write the outbox: not before the first, nor while the
    /// database is down, read-only or full.
    #[must_use]
    pub fn outbox_up(&self) -> watch::Receiver<bool> {
        self.outbox_up.subscribe()
    }

    /// When the loop comes back to its head, not counting how long the database takes for it. A loop
    /// that stays away far longer than that is stuck.
    #[must_use]
    pub fn due_back(&self) -> watch::Receiver<Instant> {
        self.due_back.subscribe()
    }

    /// Runs until `stop` is cancelled, then drains: claims nothing new, waits for what is in
    /// flight as long as the grace allows, and gives the rest back without burning an attempt.
    pub async fn run(mut self, stop: CancellationToken) {
        self.heard(Heard { connected: true, ..Heard::default() });
        loop {
            self.begin_settle();
            self.begin_claim();
            self.begin_asking();
            self.begin_looking_back();
            let (look, settle) = (self.look_at(), self.settle_at());
            let question = self.next_question.unwrap_or(look);
            let look_back = self.unmeasured.at();
            let since = self.waiting_since().chain(self.bell.since());
            self.due_back.send_replace(since.min().unwrap_or(look));
            tokio::select! {
                () = stop.cancelled() => break,
                heard = self.wakes.next() => self.heard(heard),
                Some(ended) = self.attempts.join_next_with_id() => {
                    self.collect(ended);
                    self.collect_ended();
                    self.slots_are_free();
                }
                (since, answer) = answered(&mut self.claims.underway) => self.claimed(since, answer),
                (_, answer) = answered(&mut self.settlements.underway) => self.written(answer),
                (_, answer) = answered(&mut self.asking) => self.asked(answer),
                (_, answer) = answered(&mut self.bell.opening) => self.opened(answer),
                (_, answer) = answered(&mut self.bell.passing) => self.passed(answer),
                (_, answer) = answered(&mut self.unmeasured.underway) => self.looked_back(answer),
                () = sleep_until(look), if self.claims.underway.is_none() => {}
                () = sleep_until(question), if self.asking.is_none() && self.next_question.is_some() => {}
                () = sleep_until(look_back.unwrap_or(look)),
                    if self.unmeasured.underway.is_none() && look_back.is_some() => {}
                () = sleep_until(settle),
                    if self.settlements.underway.is_none() && !self.finished.is_empty() => {}
            }
        }
        self.drain().await;
    }

    fn collect_ended(&mut self) {
        while let Some(ended) = self.attempts.try_join_next_with_id() {
            self.collect(ended);
        }
    }

    /// Bytes that one lane may have in flight.
    fn lane_share(&self) -> usize {
        (self.settings.payload / LANES_IN_FULL).max(1)
    }

    /// How many rows that failed before may be claimed: a quarter of the slots is for the others.
    fn retries_left(&self) -> usize {
        (self.settings.concurrency * 3 / 4).max(1).saturating_sub(self.retries)
    }

    /// Observes and starts what was claimed.
    fn start(&mut self, claimed: Claimed) {
        self.observe(claimed.transitions);
        for claim in claimed.claims {
            if claim.is_new {
                histogram!(names::DELIVERY_LAG).record(claim.owed_for);
            }
            self.share.serve(&claim.lane);
            let weight = claim.weight(self.lane_share());
            let ticket = Ticket::of(&claim);
            let Claim { row, lane, task_id, attempt: number, prepared, .. } = claim;
            match prepared {
                Ok(prepared) => {
                    let span = tracing::info_span!(
                        "attempt",
                        source = row.source.as_str(),
                        row.id = row.id,
                        task.id = task_id,
                        attempt = number
                    );
                    let means = self.means.clone();
                    let handle = self
                        .attempts
                        .spawn(async move { attempt(&means, &prepared, ticket).await }.instrument(span));
                    let held = self.in_flight.entry(lane.clone()).or_default();
                    held.rows += 1;
                    held.bytes += weight;
                    self.payload += weight;
                    self.retries += usize::from(number > 1);
                    self.started.insert(handle.id(), Started { lane, ticket, task_id, weight });
                }
                Err(outcome) => {
                    let settled = unsent(&outcome, &ticket, &task_id, &self.means);
                    self.finished.push(settled);
                }
            }
        }
    }

    fn collect(&mut self, ended: Result<(tokio::task::Id, Settled), tokio::task::JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(Started { lane, ticket, task_id, weight }) = self.started.remove(&id) else { return };
        // The one that has ended is not among the attempts any more.
        let all_full = self.attempts.len() + 1 >= self.settings.concurrency
            || self.payload >= self.settings.payload
            || self.retries_left() == 0;
        self.claims.freed |= all_full;
        self.claims.ended = true;
        self.payload -= weight;
        self.retries -= usize::from(ticket.attempt > 1);
        let share = self.lane_share();
        if let Some(held) = self.in_flight.get_mut(&lane) {
            self.claims.freed |= held.fills(self.share.seats(), share);
            held.rows -= 1;
            held.bytes -= weight;
            if held.rows == 0 {
                self.in_flight.remove(&lane);
            }
        }
        let settled = match ended {
            Ok((_, settled)) => self.blame(&lane, settled),
            // A panic ends its attempt, not the daemon; a cancelled attempt is given back.
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(
                        source = ticket.row.source.as_str(),
                        row.id = ticket.row.id,
                        task.id = task_id,
                        "an attempt panicked"
                    );
                }
                let after = if error.is_panic() { PANIC_DELAY } else { Duration::ZERO };
                let verdict = match error.is_panic() {
                    true => Verdict::Release { after },
                    false => Verdict::Unclaim { after },
                };
                let reason = error.is_panic().then_some(FailureReason::Internal);
                Settled::without_attempt(&ticket, verdict, reason)
            }
        };
        self.finished.push(settled);
    }

    /// An attempt that failed because we have no way out burns nothing.
    fn blame(&mut self, lane: &Lane, mut settled: Settled) -> Settled {
        let settlement = &mut settled.settlement;
        if self.egress.is_down_after(lane, settlement.reason)
            && matches!(settlement.verdict, Verdict::Release { .. })
        {
            tracing::error!(
                "every destination fails: the way out of here is down, and no attempts are counted"
            );
            settlement.verdict = Verdict::Unclaim { after: NO_WAY_OUT };
        }
        settled
    }
}

/// An attempt that has been started, and what it takes of the room.
struct Started {
    lane: Lane,
    ticket: Ticket,
    /// For the log.
    task_id: String,
    weight: usize,
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// So many lanes with large bodies may fill all the room for bytes.
const LANES_IN_FULL: usize = 8;
const OUTAGE_PAUSE: Duration = Duration::from_millis(500);
/// While every destination fails.
const NO_WAY_OUT: Duration = Duration::from_secs(10);
const PANIC_DELAY: Duration = Duration::from_secs(60);
