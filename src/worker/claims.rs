//! Claims, at most one under way: how much room there is, what came of it, and when to look next.
//!
//! What the last ones left behind decides where the next look goes, and how soon:
//!
//! | flag | set by | until | then |
//! |---|---|---|---|
//! | `again` | slots that come free, or a bell, during a claim that may have begun too early | it is answered | the next look is at once |
//! | `ended` | any attempt that ends | the next claim begins | with `Claimed::more`, `freed` is set |
//! | `freed` | slots that come free where rows may have been passed over | a look that is not the bell's | who is asleep looks at what is known |
//! | `missed` | a bell whose place gave nothing | the next claim | a look elsewhere soon |
//! | `was_full` | a claim that brought all it had room for | the next claim | slots gather before the next; others are called |
//! | `walk_was_full` | the same of a look everywhere | the next such look | known places that give little send us everywhere |

use std::time::Duration;

use metrics::counter;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::attempt::{World, Writing};
use super::courtesy::Kind;
use super::exchange::Underway;
use super::share::Filled;
use super::sleep::Phase;
use super::{OUTAGE_PAUSE, Worker, chain};
use crate::metrics as names;
use crate::outbox::{Claimed, Look, Outbox, OutboxError, Room};

/// The claim that is under way, and how the last ones went.
pub(super) struct Claims {
    pub(super) underway: Option<Underway<Claimed>>,
    /// Where it looks.
    look: Look,
    /// The last look was where the bell had rung.
    pub(super) rang: bool,
    /// Rows that the claim under way may bring, or the last one might have brought.
    room: usize,
    /// Bytes of their documents.
    room_bytes: usize,
    /// Rows that the last claim brought.
    brought: usize,
    /// How large a body of the last claims was.
    body: usize,
    /// The last claim brought all that it had room for: more is waiting.
    pub(super) was_full: bool,
    /// The same of the last claim that looked everywhere.
    pub(super) walk_was_full: bool,
    /// The last claim found nothing at some place for which the bell had rung.
    pub(super) missed: bool,
    /// Slots have come free since the claim under way was begun.
    again: bool,
    /// Attempts have ended since then.
    pub(super) ended: bool,
    /// Slots for which rows may have been passed over have come free since the last look at what is known.
    pub(super) freed: bool,
    /// The last one could read the outbox.
    pub(super) works: bool,
}

impl Default for Claims {
    fn default() -> Self {
        Self {
            underway: None,
            look: Look::Whole,
            rang: false,
            room: 0,
            room_bytes: 0,
            brought: 0,
            body: 0,
            was_full: false,
            walk_was_full: false,
            missed: false,
            again: false,
            ended: false,
            freed: false,
            works: false,
        }
    }
}

/// What matters of a claim once its rows are started.
#[derive(Default)]
struct Gist {
    anything: bool,
    /// How many changes have been recorded in all, where that was read.
    recorded: Option<i64>,
    /// How long the oldest that had not been tried before was owed.
    oldest: Option<Duration>,
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// Takes due rows for the free slots, if it is time, unless that is being done.
    pub(super) fn begin_claim(&mut self) {
        if self.claims.underway.is_some() {
            return;
        }
        let Some(look) = self.wanted_look() else { return };
        self.claims.freed &= matches!(look, Look::At { .. });
        self.claims.ended = false;
        let room = self.room(look.clone());
        self.claims.rang = matches!(look, Look::At { .. });
        self.claims.look = look;
        (self.claims.room, self.claims.room_bytes) = (room.rows, room.bytes);
        let outbox = self.outbox.clone();
        self.claims.underway = Some(Underway::begin(async move { outbox.claim(&room).await }));
    }

    /// Looks as soon as possible, and once more if a claim is under way: it may have begun too early.
    pub(super) fn look_now(&mut self) {
        self.claims.again |= self.claims.underway.is_some();
        self.next_look = Instant::now();
    }

    /// Attempts have ended: their slots may take more.
    pub(super) fn slots_are_free(&mut self) {
        self.claims.again |= self.claims.freed && self.claims.underway.is_some();
        // While a backlog waits, one claim for many slots costs the database less than many claims.
        let pause = match self.phase {
            _ if self.claims.was_full && self.free_slots() < self.enough() => GATHER,
            // Nothing was passed over, and the bell rings for what is new.
            Phase::Asleep { .. } | Phase::Dozing { .. } if !self.claims.freed => return,
            _ => Duration::ZERO,
        };
        self.next_look = self.next_look.min(Instant::now() + pause);
    }

    /// Whether the last claim brought so much that our looking is cheaper than everybody's ringing.
    pub(super) fn brought_much(&self) -> bool {
        self.claims.was_full || self.claims.brought >= MUCH
    }

    /// Whether the last claim might have brought rows.
    pub(super) fn had_room(&self) -> bool {
        self.claims.room > 0
    }

    /// Rows that the last claim brought.
    pub(super) fn brought(&self) -> usize {
        self.claims.brought
    }

    /// Free slots that are worth a claim, or ended attempts that are worth a settle.
    pub(super) fn enough(&self) -> usize {
        BATCH.min(self.settings.concurrency / 2)
    }

    /// What may be claimed now.
    fn room(&self, look: Look) -> Room {
        let bytes = self.settings.payload.saturating_sub(self.payload);
        // The database has to read large documents to learn their size: not many more than will do.
        let enough =
            |bytes: usize| (2 * bytes).checked_div(self.claims.body).map_or(BATCH, |rows| rows.max(1));
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

    /// Attempts that may be begun now.
    pub(super) fn free_slots(&self) -> usize {
        // What cannot be settled keeps its slot: otherwise a database that only reads would have
        // us send, forget and send again. What has only just ended does not, within limits.
        let ended = self.finished.iter().chain(&self.settlements.being_written);
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
        let look = std::mem::replace(&mut self.claims.look, Look::Whole);
        let (fault, gist) = match answer {
            Ok(mut claimed) => (claimed.fault.take(), self.take_in(&look, claimed)),
            Err(error) => (Some(error), Gist::default()),
        };
        self.claims.works = fault.is_none();
        self.publish_outbox_up();
        if let Some(error) = fault {
            tracing::error!(error = %chain(&error), "the outbox could not be read");
            self.note_look(&look, since.elapsed());
            self.next_look = Instant::now() + OUTAGE_PAUSE;
            return;
        }
        let took = since.elapsed();
        tracing::trace!(?look, brought = self.claims.brought, ?took, "looked");
        self.next_look = self.after(&look, gist.anything, took);
        self.rest(&look, took, &gist);
        if std::mem::take(&mut self.claims.again) {
            self.next_look = Instant::now();
        }
        if self.claims.was_full {
            // Others who look would be no relief for a database that is busy.
            if !self.is_resting() {
                self.call_for_help();
            }
            if gist.anything && self.free_slots() < self.enough() {
                self.next_look = self.next_look.max(Instant::now() + GATHER);
            }
        }
    }

    /// Starts what was claimed, and remembers what it says of the rest.
    fn take_in(&mut self, look: &Look, claimed: Claimed) -> Gist {
        let rows = claimed.claims.len();
        let first = claimed.claims.iter().filter(|claim| claim.attempt == 1);
        let gist = Gist {
            anything: rows > 0 || !claimed.transitions.is_empty(),
            recorded: claimed.recorded,
            oldest: first.map(|claim| claim.owed_for).max(),
        };
        self.claims.missed = claimed.missed;
        // Its bell has been heard and will not ring again.
        self.claims.again |= claimed.more;
        // What ended meanwhile did so at a lane that was not yet full.
        self.claims.freed |= claimed.more && self.claims.ended;
        self.claims.brought = rows.max(claimed.transitions.len());
        let bytes: usize = claimed.claims.iter().map(|claim| claim.weight(self.lane_share())).sum();
        if let Some(body) = bytes.checked_div(rows) {
            self.claims.body = body;
        }
        self.claims.was_full =
            self.had_room() && (rows >= self.claims.room || bytes >= self.claims.room_bytes);
        if self.had_room() && look.is_walk() {
            self.claims.walk_was_full = self.claims.was_full;
        }
        self.start(claimed);
        if self.share.adapt(self.filled(rows), self.attempts.len()) {
            // Lanes that were full are not any more.
            self.claims.freed = true;
            self.claims.again = true;
        }
        gist
    }

    /// How much of its room the last claim has brought.
    fn filled(&self, rows: usize) -> Filled {
        match self.claims.room {
            0 => Filled::Most,
            _ if self.claims.was_full || self.claims.walk_was_full => Filled::All,
            room if 2 * rows > room => Filled::Most,
            _ => Filled::Little,
        }
    }

    /// Rests after a look, if sellers need the database more than we do.
    fn rest(&mut self, look: &Look, took: Duration, gist: &Gist) {
        let Some(recorded) = gist.recorded else { return };
        let now = Instant::now();
        let kind = if look.is_walk() { Kind::Walk } else { Kind::Quick };
        let rest = self.courtesy.rest(now, kind, took, self.claims.brought, recorded);
        let waited = self.courtesy.waited(now, gist.oldest);
        if rest > Duration::ZERO && self.phase == Phase::Awake && waited < self.settings.yield_for {
            counter!(names::RESTS).increment(1);
            self.rests_until = now + rest;
            if look.is_walk() {
                // The next look is a quick one: walks are dearer.
                self.next_wide = self.next_wide.max(self.rests_until + took);
            }
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
}

/// Rows in one claim: enough to share what each costs whatever it brings.
const BATCH: usize = 192;
/// Rows in one claim that make a busy time.
const MUCH: usize = 16;
/// How long free slots wait for company while a backlog waits.
const GATHER: Duration = Duration::from_millis(2);
/// Between two calls for help.
const RING_PAUSE: Duration = Duration::from_millis(100);
