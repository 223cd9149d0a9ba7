//! The exchanges with the database, at most one of each kind under way: a claim fills free slots, a
//! settle writes what has ended, who is asleep asks how things stand, and the journal is asked what was
//! before. Each is a task of its own, on a connection of its own, so that the database works on them while
//! attempts are on the wire.

use std::time::Duration;

use metrics::counter;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use super::attempt::{Settled, World, Writing};
use super::courtesy::Kind;
use super::share::Filled;
use super::sleep::{Asked, CALM, Phase};
use super::{OUTAGE_PAUSE, Worker, chain};
use crate::metrics as names;
use crate::outbox::{Claimed, Entered, Look, Outbox, OutboxError, Room, SettledRows, Settlement, Verdict};

/// What is under way, and how the last ones went.
pub(super) struct Exchange {
    pub(super) claiming: Option<Underway<Claimed>>,
    pub(super) settling: Option<Underway<SettledRows>>,
    pub(super) asking: Option<Underway<Asked>>,
    pub(super) looking_back: Option<Underway<Vec<Option<Entered>>>>,
    /// Where the claim that is under way looks.
    look: Look,
    /// The last look was where the bell had rung.
    pub(super) rang: bool,
    /// What the settle that is under way writes.
    pub(super) being_written: Vec<Settled>,
    /// After a settle that failed, what it did not write waits.
    pub(super) settle_after: Instant,
    /// When the last settle was begun.
    wrote_at: Instant,
    /// Whether what was refused is tried next, where something else waits too.
    turn_of_refused: bool,
    /// Nothing waits for company any more.
    winding_up: bool,
    /// Rows that the claim under way may bring, or the last one might have brought.
    room: usize,
    /// Bytes of their documents.
    room_bytes: usize,
    /// Rows that the last claim brought.
    brought: usize,
    /// How large a body of the last claims was.
    body: usize,
    /// The last claim brought all that it had room for: more is waiting.
    pub(super) more: bool,
    /// The same of the last claim that looked everywhere.
    pub(super) more_elsewhere: bool,
    /// The last claim found nothing at some place for which the bell had rung.
    pub(super) missed: bool,
    /// Slots have come free since the claim under way was begun.
    again: bool,
    /// Attempts have ended since then.
    pub(super) ended: bool,
    /// Slots for which rows may have been passed over have come free since the last look at what is known.
    pub(super) freed: bool,
    claims_work: bool,
    settles_work: bool,
}

/// An exchange that has not been answered.
pub(super) struct Underway<T> {
    pub(super) since: Instant,
    pub(super) task: JoinHandle<Result<T, OutboxError>>,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            claiming: None,
            settling: None,
            asking: None,
            looking_back: None,
            look: Look::Whole,
            rang: false,
            being_written: Vec::new(),
            settle_after: Instant::now(),
            wrote_at: Instant::now(),
            turn_of_refused: false,
            winding_up: false,
            room: 0,
            room_bytes: 0,
            brought: 0,
            body: 0,
            more: false,
            more_elsewhere: false,
            missed: false,
            again: false,
            ended: false,
            freed: false,
            claims_work: false,
            settles_work: true,
        }
    }
}

impl Exchange {
    /// Since when each exchange that is under way has been waited for.
    pub(super) fn since(&self) -> impl Iterator<Item = Instant> {
        let claiming = self.claiming.as_ref().map(|claim| claim.since);
        let settling = self.settling.as_ref().map(|settle| settle.since);
        let asking = self.asking.as_ref().map(|question| question.since);
        let looking_back = self.looking_back.as_ref().map(|question| question.since);
        [claiming, settling, asking, looking_back].into_iter().flatten()
    }

    /// Gives up what only a worker that goes on wants to know; what has ended is written at once from now on.
    pub(super) fn wind_up(&mut self) {
        self.winding_up = true;
        if let Some(question) = self.asking.take() {
            question.task.abort();
        }
        if let Some(question) = self.looking_back.take() {
            question.task.abort();
        }
    }
}

/// Completes with the answer of what is under way, and since when it was; never where nothing is.
pub(super) async fn answered<T>(underway: &mut Option<Underway<T>>) -> (Instant, Result<T, OutboxError>) {
    let Some(exchange) = underway.as_mut() else { return std::future::pending().await };
    let answer = (&mut exchange.task).await;
    let since = exchange.since;
    *underway = None;
    let answer = match answer.map_err(JoinError::try_into_panic) {
        Ok(answer) => answer,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => Err(OutboxError::Silent),
    };
    (since, answer)
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// Takes due rows for the free slots, if it is time, unless that is being done.
    pub(super) fn begin_claim(&mut self) {
        if self.exchange.claiming.is_some() {
            return;
        }
        let Some(look) = self.wanted_look() else { return };
        self.exchange.freed &= matches!(look, Look::At { .. });
        self.exchange.ended = false;
        let room = self.room(look.clone());
        self.exchange.rang = matches!(look, Look::At { .. });
        self.exchange.look = look;
        (self.exchange.room, self.exchange.room_bytes) = (room.rows, room.bytes);
        let outbox = self.outbox.clone();
        let task = tokio::spawn(async move { outbox.claim(&room).await });
        self.exchange.claiming = Some(Underway { since: Instant::now(), task });
    }

    /// Looks as soon as possible, and once more if a claim is under way: it may have begun too early.
    pub(super) fn look_now(&mut self) {
        self.exchange.again |= self.exchange.claiming.is_some();
        self.next_look = Instant::now();
    }

    /// Attempts have ended: their slots may take more.
    pub(super) fn slots_are_free(&mut self) {
        self.exchange.again |= self.exchange.freed && self.exchange.claiming.is_some();
        // While a backlog waits, one claim for many slots costs the database less than many claims.
        let pause = match self.phase {
            _ if self.exchange.more && self.free_slots() < self.enough() => GATHER,
            // Nothing was passed over, and the bell rings for what is new.
            Phase::Asleep { .. } | Phase::Settling { .. } if !self.exchange.freed => return,
            _ => Duration::ZERO,
        };
        self.next_look = self.next_look.min(Instant::now() + pause);
    }

    /// Whether the last claim brought so much that our looking is cheaper than everybody's ringing.
    pub(super) fn brought_much(&self) -> bool {
        self.exchange.more || self.exchange.brought >= MUCH
    }

    /// Rows that the last claim brought.
    pub(super) fn brought(&self) -> usize {
        self.exchange.brought
    }

    /// Free slots that are worth a claim, or ended attempts that are worth a settle.
    fn enough(&self) -> usize {
        BATCH.min(self.settings.concurrency / 2)
    }

    /// What may be claimed now.
    fn room(&self, look: Look) -> Room {
        let bytes = self.settings.payload.saturating_sub(self.payload);
        // The database has to read large documents to learn their size: not many more than will do.
        let enough =
            |bytes: usize| (2 * bytes).checked_div(self.exchange.body).map_or(BATCH, |rows| rows.max(1));
        Room {
            rows: self.free_slots().min(BATCH).min(enough(bytes)),
            per_lane: self.share.seats(),
            at_a_lane: enough(self.lane_share()),
            bytes,
            bytes_per_lane: self.lane_share(),
            in_flight: self.in_flight.iter().map(|(lane, held)| (lane.clone(), *held)).collect(),
            retries: self.retries_left(),
            changes: self.room_for_changes(),
            look,
        }
    }

    fn free_slots(&self) -> usize {
        // What cannot be settled keeps its slot: otherwise a database that only reads would have
        // us send, forget and send again. What has only just ended does not, within limits.
        let ended = self.finished.iter().chain(&self.exchange.being_written);
        let (mut unwritten, mut held_up) = (0, 0);
        for ended in ended {
            unwritten += 1;
            held_up += usize::from(ended.writing != Writing::Due);
        }
        if self.payload >= self.settings.payload {
            return 0;
        }
        let owned = self.attempts.len() + unwritten;
        let limit = self.settings.concurrency;
        limit.saturating_sub(self.attempts.len() + held_up).min((2 * limit).saturating_sub(owned))
    }

    /// Starts what a claim has brought, and decides when to look next.
    pub(super) fn claimed(&mut self, since: Instant, answer: Result<Claimed, OutboxError>) {
        let look = std::mem::replace(&mut self.exchange.look, Look::Whole);
        let (mut recorded, mut oldest) = (None, None);
        let (found, fault) = match answer {
            Ok(mut claimed) => {
                recorded = claimed.recorded;
                self.exchange.missed = claimed.missed;
                // Its bell has been heard and will not ring again.
                self.exchange.again |= claimed.more;
                // What ended meanwhile did so at a lane that was not yet full.
                self.exchange.freed |= claimed.more && self.exchange.ended;
                let first = claimed.claims.iter().filter(|claim| claim.attempt == 1);
                oldest = first.map(|claim| claim.owed_for).max();
                let fault = claimed.fault.take();
                let found = !claimed.transitions.is_empty() || !claimed.claims.is_empty();
                let rows = claimed.claims.len();
                self.exchange.brought = rows.max(claimed.transitions.len());
                let bytes: usize = claimed.claims.iter().map(|claim| claim.weight(self.lane_share())).sum();
                if let Some(body) = bytes.checked_div(rows) {
                    self.exchange.body = body;
                }
                self.exchange.more = self.exchange.room > 0
                    && (rows >= self.exchange.room || bytes >= self.exchange.room_bytes);
                if self.exchange.room > 0 && matches!(look, Look::Whole | Look::Wide) {
                    self.exchange.more_elsewhere = self.exchange.more;
                }
                self.start(claimed);
                if self.share.adapt(self.filled(rows), self.attempts.len()) {
                    // Lanes that were full are not any more.
                    self.exchange.freed = true;
                    self.exchange.again = true;
                }
                (found, fault)
            }
            Err(error) => (false, Some(error)),
        };
        self.exchange.claims_work = fault.is_none();
        self.publish_outbox_up();
        if let Some(error) = fault {
            tracing::error!(error = %chain(&error), "the outbox could not be read");
            self.pace(&look, since.elapsed());
            self.next_look = Instant::now() + OUTAGE_PAUSE;
            return;
        }
        let took = since.elapsed();
        tracing::trace!(?look, brought = self.exchange.brought, ?took, "looked");
        self.next_look = self.after(&look, found, took);
        self.rest(&look, took, recorded, oldest);
        if std::mem::take(&mut self.exchange.again) {
            self.next_look = Instant::now();
        }
        if self.exchange.more {
            // Others who look would be no relief for a database that is busy.
            if !self.is_resting() {
                self.call_for_help();
            }
            if found && self.free_slots() < self.enough() {
                self.next_look = self.next_look.max(Instant::now() + GATHER);
            }
        }
    }

    /// How much of its room the last claim has brought.
    fn filled(&self, rows: usize) -> Filled {
        match self.exchange.room {
            0 => Filled::Most,
            _ if self.exchange.more || self.exchange.more_elsewhere => Filled::All,
            room if 2 * rows > room => Filled::Most,
            _ => Filled::Little,
        }
    }

    /// Rests after a look, if sellers need the database more than we do.
    fn rest(&mut self, look: &Look, took: Duration, recorded: Option<i64>, oldest: Option<Duration>) {
        let Some(recorded) = recorded else { return };
        let now = Instant::now();
        let look = if *look == Look::Quick { Kind::Quick } else { Kind::Walk };
        let rest = self.courtesy.rest(now, look, took, self.exchange.brought, recorded);
        let waited = self.courtesy.waited(now, oldest);
        if rest > Duration::ZERO && self.phase == Phase::Awake && waited < self.settings.yield_for {
            counter!(names::RESTS).increment(1);
            self.rests_until = now + rest;
        }
    }

    /// More is waiting than one claim takes: the other daemons may help.
    pub(super) fn call_for_help(&mut self) {
        if self.last_ring.is_none_or(|rung| rung.elapsed() >= RING_PAUSE) {
            self.last_ring = Some(Instant::now());
            let outbox = self.outbox.clone();
            // They only look; no harm if it fails.
            tokio::spawn(async move { outbox.ring().await });
        }
    }

    /// Lets the bell ring again, and then has the others look: after what was silent for our sake.
    pub(super) fn leave(&self) -> JoinHandle<Result<(), OutboxError>> {
        let (doorbell, outbox) = (self.doorbell.clone(), self.outbox.clone());
        tokio::spawn(async move {
            // Without a connection nothing is silent.
            let _ = doorbell.open().await;
            outbox.ring().await
        })
    }

    /// Writes what has ended, unless something is being written. What could not be written is tried
    /// again, until its lease runs out: after that it is somebody else's. What the database
    /// refused is tried again by itself, because it may be the one row that it refuses, and in turn with the rest.
    pub(super) fn begin_settle(&mut self) {
        if self.exchange.settling.is_some() || self.finished.is_empty() || self.gathers_until().is_some() {
            return;
        }
        let now = Instant::now();
        let again = now >= self.exchange.settle_after;
        let (mut refused, mut others): (Vec<Settled>, Vec<Settled>) = std::mem::take(&mut self.finished)
            .into_iter()
            .partition(|ended| ended.writing == Writing::Refused);
        let new = others.iter().any(|ended| ended.writing == Writing::Due);
        let turn = again && !refused.is_empty() && (self.exchange.turn_of_refused || others.is_empty());
        let mut batch = Vec::new();
        if turn {
            batch.push(refused.remove(0));
        } else if new || again {
            batch.append(&mut others);
            self.exchange.wrote_at = now;
        }
        self.finished.append(&mut refused);
        self.finished.append(&mut others);
        if batch.is_empty() {
            return;
        }
        self.exchange.turn_of_refused = !turn;
        self.exchange.being_written = batch;
        let settlements: Vec<Settlement> =
            self.exchange.being_written.iter().map(|ended| ended.settlement.clone()).collect();
        let outbox = self.outbox.clone();
        let task = tokio::spawn(async move { outbox.settle(&settlements).await });
        self.exchange.settling = Some(Underway { since: Instant::now(), task });
    }

    /// Until when what has ended waits for company, if it does.
    fn gathers_until(&self) -> Option<Instant> {
        let now = Instant::now();
        if self.exchange.winding_up {
            return None;
        }
        // While we rest, one settle is kinder than many.
        if now < self.rests_until && !self.attempts.is_empty() {
            return Some(self.rests_until);
        }
        let pause = self.exchange.wrote_at + GATHER_ENDED;
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
        self.gathers_until().unwrap_or(self.exchange.settle_after)
    }

    /// Takes note of what a settle has written.
    pub(super) fn written(&mut self, answer: Result<SettledRows, OutboxError>) {
        let now = Instant::now();
        let mut rows = answer.unwrap_or_else(|error| SettledRows {
            unwritten: self.exchange.being_written.iter().map(|ended| ended.settlement.row).collect(),
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
        } else if self.exchange.being_written.iter().any(back) {
            // They come due again, and circuits may have closed.
            self.wants_due = true;
            self.next_question.get_or_insert(now + CALM);
        }
        self.settled(&rows, fault.as_ref().is_some_and(OutboxError::leaves_doubt));
        self.exchange.settles_work = fault.is_none();
        self.publish_outbox_up();
        if let Some(error) = fault {
            tracing::error!(error = %chain(&error), rows = self.finished.len(), "the outbox could not be written");
            self.exchange.settle_after = now + OUTAGE_PAUSE;
        }
    }

    /// Counts what was written; forgets what is settled or lost.
    fn settled(&mut self, rows: &SettledRows, doubt: bool) {
        for mut ended in std::mem::take(&mut self.exchange.being_written) {
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

    fn publish_outbox_up(&self) {
        let up = self.exchange.claims_work && self.exchange.settles_work;
        self.outbox_up.send_if_modified(|published| std::mem::replace(published, up) != up);
    }
}

/// Rows in one claim: enough to share what each costs whatever it brings.
const BATCH: usize = 192;
/// Rows in one claim that make a busy time.
const MUCH: usize = 16;
/// How long free slots wait for company while a backlog waits.
const GATHER: Duration = Duration::from_millis(2);
/// Between two settles of an awake worker, unless so many have ended that they fill one: a statement costs the
/// database a quarter of a millisecond besides what it does for its rows.
const GATHER_ENDED: Duration = Duration::from_millis(10);
/// Between two calls for help.
const RING_PAUSE: Duration = Duration::from_millis(100);
