//! The loop: claim, attempt, judge, settle, and fall asleep without missing a row.
//!
//! One turn is one round trip: finished attempts are settled and free slots filled at once.
//! Only what starts now is claimed, so no lease runs out in memory behind a slow receiver; no
//! connection is held while a request is on the wire. How the loop sleeps is told in
//! [`crate::listener::Doorbell`]; the states here are its states.

mod sleep;
mod attempt;
mod judge;
mod egress;

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use metrics::{counter, histogram};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::listener::{Doorbell, Wake};
use crate::metrics::{self as names, TaskTypes};
use crate::outbox::{
    Claim, Claimed, Lane, Outbox, OutboxError, Room, SettledRows, Settlement, Transition, Verdict,
};
use crate::webhook::{FailureReason, Sender, Signer};

use attempt::{Means, Settled, Ticket, Writing, attempt, unsent};
use egress::Egress;
use sleep::Phase;

pub use attempt::World;
pub use judge::{Facts, RetryPolicy};

/// How the worker behaves.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Attempts in flight at once.
    pub concurrency: usize,
    /// Attempts in flight at once to one destination.
    pub per_lane: usize,
    /// How long it stays awake after the last row, with the bell silent.
    pub linger: Duration,
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
    world: Arc<W>,
    sender: Sender,
    signer: Arc<Signer>,
    doorbell: Doorbell,
    wakes: mpsc::Receiver<Wake>,
    settings: WorkerSettings,
    attempts: JoinSet<Settled>,
    in_flight: HashMap<Lane, usize>,
    started: HashMap<tokio::task::Id, (Lane, Claim)>,
    finished: Vec<Settled>,
    egress: Egress,
    /// A claim that was begun while the one before it is worked on.
    ahead: Option<JoinHandle<Result<Claimed, OutboxError>>>,
    last_ring: Option<Instant>,
    outbox_up: watch::Sender<bool>,
    due_back: watch::Sender<Instant>,
    phase: Phase,
    last_busy: Instant,
    /// What the timer of an asleep worker stands for.
    alarm: &'static str,
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// A worker; [`Worker::run`] starts it.
    pub fn new(
        outbox: Arc<O>,
        world: Arc<W>,
        sender: Sender,
        signer: Arc<Signer>,
        doorbell: Doorbell,
        wakes: mpsc::Receiver<Wake>,
        settings: WorkerSettings,
    ) -> Self {
        Self {
            outbox,
            world,
            sender,
            signer,
            doorbell,
            wakes,
            settings,
            attempts: JoinSet::new(),
            in_flight: HashMap::new(),
            started: HashMap::new(),
            finished: Vec::new(),
            egress: Egress::default(),
            ahead: None,
            last_ring: None,
            outbox_up: watch::Sender::new(false),
            due_back: watch::Sender::new(Instant::now()),
            phase: Phase::Asleep { watchful: true },
            last_busy: Instant::now(),
            alarm: "safety_poll",
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
        self.wake_up("connected");
        loop {
            self.due_back.send_replace(Instant::now());
            let turned = tokio::select! {
                turned = self.turn() => turned,
                // A database that does not answer must not hold up a stop.
                () = long_after(&stop) => {
                    // What it was settling may have been written.
                    self.finished.iter_mut().for_each(|ended| ended.writing = Writing::InDoubt);
                    break;
                }
            };
            self.outbox_up.send_if_modified(|up| std::mem::replace(up, turned.is_ok()) != turned.is_ok());
            let next_look = match turned {
                Ok(found) => self.after(found).await,
                Err(error) => {
                    tracing::error!(error = %chain(&error), "the outbox could not be read or written");
                    Instant::now() + OUTAGE_PAUSE
                }
            };
            self.due_back.send_replace(next_look);
            tokio::select! {
                () = stop.cancelled() => break,
                Some(wake) = self.wakes.recv() => self.wake_up(match wake {
                    Wake::Bell => "bell",
                    Wake::Connected => "connected",
                }),
                Some(ended) = self.attempts.join_next_with_id() => self.collect(ended),
                () = sleep_until(next_look) => {}
            }
        }
        self.drain().await;
    }

    /// Settles what has finished and fills the free slots. Whether there was anything to take.
    async fn turn(&mut self) -> Result<bool, OutboxError> {
        while let Some(ended) = self.attempts.try_join_next_with_id() {
            self.collect(ended);
        }
        let room = self.room();
        let (ahead, outbox) = (self.ahead.take(), self.outbox.clone());
        let (settled, claimed) = tokio::join!(self.settle(), async {
            match ahead {
                Some(claim) => claim.await.unwrap_or_else(|error| resume_unwind(error.into_panic())),
                None => outbox.claim(&room).await,
            }
        });
        let found = match claimed {
            Ok(mut claimed) => {
                let fault = claimed.fault.take();
                let found = self.start(claimed);
                fault.map_or(Ok(found), Err)
            }
            Err(error) => Err(error),
        };
        settled.and(found)
    }

    /// What may be claimed now.
    fn room(&self) -> Room {
        // What cannot be settled keeps its slot: otherwise a database that only reads would have
        // us send, forget and send again.
        let held_up = self.finished.iter().filter(|ended| ended.writing != Writing::Due).count();
        let free = self.settings.concurrency.saturating_sub(self.attempts.len() + held_up);
        Room {
            rows: free.min(BATCH),
            per_lane: self.settings.per_lane,
            in_flight: self.in_flight.iter().map(|(lane, n)| (lane.clone(), *n)).collect(),
            retries: self.retries_in_flight() < self.settings.concurrency * 3 / 4,
        }
    }

    /// Writes what has finished. What could not be written is tried again on the next turn,
    /// until its lease runs out: after that it is somebody else's.
    async fn settle(&mut self) -> Result<(), OutboxError> {
        if self.finished.is_empty() {
            return Ok(());
        }
        let settlements: Vec<Settlement> =
            self.finished.iter().map(|ended| ended.settlement.clone()).collect();
        let mut rows = match self.outbox.settle(&settlements).await {
            Ok(rows) => rows,
            Err(error) => SettledRows {
                unwritten: settlements.iter().map(|settlement| settlement.row).collect(),
                fault: Some(error),
                ..SettledRows::default()
            },
        };
        let fault = rows.fault.take();
        self.settled(&rows, fault.as_ref().is_some_and(OutboxError::leaves_doubt));
        fault.map_or(Ok(()), Err)
    }

    /// Attempts in flight that are not the first of their row.
    fn retries_in_flight(&self) -> usize {
        self.started.values().filter(|(_, claim)| claim.attempt > 1).count()
    }

    /// Observes and starts what was claimed. Whether there was anything.
    fn start(&mut self, claimed: Claimed) -> bool {
        let found = !claimed.transitions.is_empty() || !claimed.claims.is_empty();
        let full = claimed.claims.len() >= BATCH;
        self.observe(claimed.transitions);
        for claim in claimed.claims {
            if claim.is_new {
                histogram!(names::DELIVERY_LAG).record(claim.owed_for);
            }
            match &claim.prepared {
                Ok(prepared) => {
                    let span = tracing::info_span!(
                        "attempt",
                        source = claim.row.source.as_str(),
                        row.id = claim.row.id,
                        task.id = claim.task_id,
                        attempt = claim.attempt
                    );
                    let means = Means {
                        sender: self.sender.clone(),
                        signer: self.signer.clone(),
                        world: self.world.clone(),
                        policy: self.settings.retry.clone(),
                        deadline: self.settings.deadline,
                    };
                    let ticket = Ticket::of(&claim);
                    let prepared = prepared.clone();
                    let handle = self
                        .attempts
                        .spawn(async move { attempt(&means, &prepared, ticket).await }.instrument(span));
                    *self.in_flight.entry(claim.lane.clone()).or_default() += 1;
                    self.started.insert(handle.id(), (claim.lane.clone(), claim));
                }
                Err(outcome) => {
                    let settled = unsent(outcome, &claim, &self.settings.retry, &*self.world);
                    self.finished.push(settled);
                }
            }
        }
        if full {
            self.claim_ahead();
        }
        found
    }

    /// There is more than one claim takes: the database looks for the next rows while we send
    /// these, and the other daemons are told to help.
    fn claim_ahead(&mut self) {
        let room = self.room();
        if room.rows > 0 {
            let outbox = self.outbox.clone();
            self.ahead = Some(tokio::spawn(async move { outbox.claim(&room).await }));
        }
        if self.last_ring.is_none_or(|rung| rung.elapsed() >= RING_PAUSE) {
            self.last_ring = Some(Instant::now());
            let outbox = self.outbox.clone();
            // They only look; no harm if it fails.
            tokio::spawn(async move { outbox.ring().await });
        }
    }

    /// Observes each transition once. What one of them followed may stand in the same batch.
    fn observe(&self, transitions: Vec<Transition>) {
        let mut latest: HashMap<(i16, String), (String, SystemTime)> = HashMap::new();
        for mut transition in transitions {
            if let Some(previous) = latest.get(&transition.task) {
                transition.previous = Some(previous.clone());
            }
            names::observe_transition(&self.settings.task_types, &transition);
            latest.insert(transition.task.clone(), (transition.to, transition.at));
        }
    }

    fn collect(&mut self, ended: Result<(tokio::task::Id, Settled), tokio::task::JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some((lane, claim)) = self.started.remove(&id) else { return };
        if let Some(n) = self.in_flight.get_mut(&lane) {
            *n -= 1;
            if *n == 0 {
                self.in_flight.remove(&lane);
            }
        }
        let settled = match ended {
            Ok((_, settled)) => self.blame(&lane, settled),
            // A panic ends its attempt, not the daemon; a cancelled attempt is given back.
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(
                        source = claim.row.source.as_str(),
                        row.id = claim.row.id,
                        task.id = claim.task_id,
                        "an attempt panicked"
                    );
                }
                let after = if error.is_panic() { PANIC_DELAY } else { Duration::ZERO };
                let verdict = match error.is_panic() {
                    true => Verdict::Release { after },
                    false => Verdict::Unclaim { after },
                };
                let reason = error.is_panic().then_some(FailureReason::Internal);
                Settled {
                    owed_for: claim.owed_for,
                    until: claim.until,
                    writing: Writing::Due,
                    settlement: Settlement {
                        row: claim.row,
                        lease: claim.lease,
                        verdict,
                        reason,
                        attempt: None,
                    },
                }
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

    /// Counts what was written; forgets what is settled or lost.
    fn settled(&mut self, rows: &SettledRows, doubt: bool) {
        for mut ended in std::mem::take(&mut self.finished) {
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

    /// What was claimed ahead of a stop is not begun.
    fn give_back(&mut self, claimed: Claimed) {
        self.observe(claimed.transitions);
        self.finished.extend(claimed.claims.into_iter().map(|claim| Settled {
            owed_for: claim.owed_for,
            until: claim.until,
            writing: Writing::Due,
            settlement: Settlement {
                row: claim.row,
                lease: claim.lease,
                verdict: Verdict::Unclaim { after: Duration::ZERO },
                reason: None,
                attempt: None,
            },
        }));
    }

    /// Settles what ends within the grace, and gives the rest back. What cannot be written until
    /// then is repeated when its lease runs out.
    async fn drain(mut self) {
        let deadline = Instant::now() + self.settings.grace;
        self.due_back.send_replace(deadline);
        if let Some(ahead) = self.ahead.take()
            && let Ok(Ok(Ok(claimed))) = timeout_at(deadline, ahead).await
        {
            self.give_back(claimed);
        }
        loop {
            self.due_back.send_replace(Instant::now());
            if Instant::now() >= deadline {
                self.attempts.abort_all();
                while let Some(ended) = self.attempts.join_next_with_id().await {
                    self.collect(ended);
                }
            }
            while let Some(ended) = self.attempts.try_join_next_with_id() {
                self.collect(ended);
            }
            let last_try = deadline.max(Instant::now() + LAST_TRY);
            let written = match timeout_at(last_try, self.settle()).await {
                Ok(written) => written,
                Err(_) => Err(OutboxError::Silent),
            };
            if let Err(error) = written {
                tracing::error!(error = %chain(&error), rows = self.finished.len(), "not settled");
                if Instant::now() >= deadline {
                    return;
                }
            }
            if self.attempts.is_empty() && self.finished.is_empty() {
                return;
            }
            let again = if self.finished.is_empty() { deadline } else { Instant::now() + OUTAGE_PAUSE };
            self.due_back.send_replace(again.min(deadline));
            tokio::select! {
                Some(ended) = self.attempts.join_next_with_id() => self.collect(ended),
                () = sleep_until(again.min(deadline)) => {}
            }
        }
    }
}

/// Completes a while after the stop was asked for.
async fn long_after(stop: &CancellationToken) {
    stop.cancelled().await;
    sleep(STOP_PATIENCE).await;
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

const OUTAGE_PAUSE: Duration = Duration::from_millis(500);
/// Rows in one claim.
const BATCH: usize = 64;
/// Between two calls for help.
const RING_PAUSE: Duration = Duration::from_millis(100);
/// While every destination fails.
const NO_WAY_OUT: Duration = Duration::from_secs(10);
/// A turn is over in milliseconds, unless the database does not answer.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// When the grace is over, for giving back what was still in flight.
const LAST_TRY: Duration = Duration::from_secs(2);
const PANIC_DELAY: Duration = Duration::from_secs(60);
