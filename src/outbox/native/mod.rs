//! Our own outbox: rows that the triggers wrote, rendered from what they hold.
//!
//! A batch costs two statements to claim and two to settle, each pair pipelined on one
//! connection. A claim changes no column that an index has, so rows in flight stand where
//! they stood when they were due: what a daemon left behind that died is found there first.

mod places;
mod prepare;
mod seal;

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use deadpool_postgres::{Object, Pool};
use futures_util::TryStreamExt;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

use super::{
    Claim, Claimed, Columns, Lane, LeaseToken, Loan, Look, Outbox, OutboxError, Room, RowId, SettledRows,
    Settlement, Transition, Verdict, count, patiently,
};
use crate::task::{SealingKeys, UrlSchemes};

pub use seal::{Resealed, Which, seal_registrations};

use places::{Found, Place, Places, Visit};
use prepare::Preparer;

/// `taskbell.outbox`.
pub struct NativeOutbox {
    pool: Pool,
    lease: Duration,
    horizon: Duration,
    circuits: CircuitPolicy,
    patience: Duration,
    preparer: Preparer,
    /// Where the last walk ended; the next one goes on after it.
    cursor: Mutex<Option<Place>>,
    places: Mutex<Places>,
}

/// When a lane that fails is left alone, and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CircuitPolicy {
    /// Failures in a row, of one account at one destination.
    pub failures: u32,
    /// The first pause; each further one is twice as long.
    pub pause: Duration,
    /// The longest pause.
    pub max_pause: Duration,
}

impl Default for CircuitPolicy {
    fn default() -> Self {
        Self { failures: 5, pause: Duration::from_secs(5), max_pause: Duration::from_secs(300) }
    }
}

/// How a [`NativeOutbox`] treats its rows.
#[derive(Debug, Clone)]
pub struct NativeOptions {
    /// How long a claim is good for.
    pub lease: Duration,
    /// A row is given up so long after its first attempt.
    pub horizon: Duration,
    /// How long an answer of the database is waited for; longer than its own limit on statements.
    pub patience: Duration,
    /// Which URLs may be called.
    pub schemes: UrlSchemes,
    /// Open sealed registrations.
    pub sealing: Arc<SealingKeys>,
    /// When a lane is left alone.
    pub circuits: CircuitPolicy,
}

impl NativeOutbox {
    /// An outbox on a pool of connections.
    #[must_use]
    pub fn new(pool: Pool, options: NativeOptions) -> Self {
        let NativeOptions { lease, horizon, patience, schemes, sealing, circuits } = options;
        let preparer = Preparer { schemes, sealing };
        let (cursor, places) = (Mutex::new(None), Mutex::default());
        Self { pool, lease, horizon, circuits, patience, preparer, cursor, places }
    }

    /// Moves transitions into the journal and claims rows, each as far as its statement succeeded.
    async fn take(&self, client: &Object, room: &Room) -> Result<Claimed, OutboxError> {
        let visit = match &room.look {
            Look::Whole => None,
            Look::Quick => Some(self.places().round()),
            Look::At { places, .. } => self.places().rung(places),
        };
        let (journal, claim) = tokio::try_join!(
            client.prepare_cached(JOURNAL),
            client.prepare_cached(if visit.is_some() { CLAIM_KNOWN } else { CLAIM })
        )?;
        let (token, until) = (Uuid::new_v4(), Instant::now() + self.lease);
        let ask = Ask { client, claim, room, token, until };
        // In this order on the wire: the journal's statement runs first, so that the change
        // before a terminal one is in the journal when the claim looks for it.
        let journal_parameters: [&(dyn ToSql + Sync); 1] = [&JOURNAL_ROWS];
        let transitions = async {
            match room.look {
                Look::At { changes: false, .. } => Ok(Vec::new()),
                _ => client.query(&journal, &journal_parameters).await,
            }
        };
        let (transitions, brought) = tokio::join!(transitions, async {
            match visit {
                _ if room.rows == 0 => Ok(Brought::default()),
                Some(visit) if visit.lanes.is_empty() => Ok(Brought::default()),
                Some(visit) => self.visit(&ask, &visit).await,
                None => self.walk(&ask).await,
            }
        });
        // Each commits by itself: what one of them gave counts although the other failed.
        let mut claimed = Claimed::default();
        match transitions {
            Ok(rows) => claimed.transitions.extend(rows.iter().map(transition)),
            Err(error) => claimed.fault = Some(error.into()),
        }
        match brought {
            Ok(brought) => {
                self.places().learn(brought.places.into_iter());
                claimed.transitions.extend(brought.transitions);
                claimed.claims = brought.claims;
                claimed.recorded = brought.recorded;
                claimed.more = brought.more;
            }
            Err(error) => claimed.fault = Some(error.into()),
        }
        Ok(claimed)
    }

    /// Claims everywhere, a part of it at a time, until there is something.
    async fn walk(&self, ask: &Ask<'_>) -> Result<Brought, tokio_postgres::Error> {
        let mut from_the_first = self.cursor().is_none();
        // As many as there is room for rows; more where they have none.
        let mut places = count(ask.room.rows).clamp(MIN_PLACES, MAX_PLACES);
        loop {
            let after = self.cursor();
            let (lane, account) = after.as_ref().map(|(lane, account)| (lane, account)).unzip();
            let brought = self.ask(ask, places, &[&lane, &account]).await?;
            let at_the_end = brought.all;
            *self.cursor.lock().unwrap_or_else(PoisonError::into_inner) =
                brought.last.clone().filter(|_| !at_the_end);
            if !brought.claims.is_empty() || (at_the_end && from_the_first) {
                return Ok(brought);
            }
            from_the_first |= at_the_end;
            places = (places * 2).min(MAX_PLACES);
        }
    }

    /// Claims at known places.
    async fn visit(&self, ask: &Ask<'_>, visit: &Visit) -> Result<Brought, tokio_postgres::Error> {
        let places = count(visit.lanes.len()) + 1;
        let brought = self.ask(ask, places, &[&visit.lanes, &visit.accounts, &visit.since]).await?;
        if let Some(last) = &brought.last {
            self.places().visited(last);
        }
        Ok(brought)
    }

    async fn ask(
        &self,
        ask: &Ask<'_>,
        at_most: i64,
        places: &[&(dyn ToSql + Sync)],
    ) -> Result<Brought, tokio_postgres::Error> {
        let room = ask.room;
        let (lanes, counts, held) = room.busy();
        let (rows, per_lane, retries) = (count(room.rows), count(room.per_lane), count(room.retries));
        let (bytes, bytes_per_lane) = (count(room.bytes), count(room.bytes_per_lane));
        let (lease, horizon) = (self.lease.as_secs_f64(), self.horizon.as_secs_f64());
        let common: [&(dyn ToSql + Sync); 12] = [
            &rows,
            &per_lane,
            &lanes,
            &counts,
            &ask.token,
            &lease,
            &horizon,
            &retries,
            &at_most,
            &bytes,
            &bytes_per_lane,
            &held,
        ];
        let parameters = [&common[..], places].concat();
        let mut rows = pin!(ask.client.query_raw(&ask.claim, parameters).await?);
        // No row at all: there are no places after the cursor.
        let mut brought = Brought { all: true, ..Brought::default() };
        // One after the other, so that what was read does not stand beside what is rendered.
        while let Some(row) = rows.try_next().await? {
            if brought.last.is_none() {
                brought.all = row.get(VISITED_ALL);
                brought.last = Some((row.get(VISITED_ALL + 1), row.get(VISITED_ALL + 2)));
                brought.recorded = row.get(UNSEEN + 3);
                brought.more = row.get(UNSEEN + 4);
            }
            if row.get::<_, Option<i64>>(0).is_none() {
                break;
            }
            if row.get(UNSEEN) {
                brought.transitions.push(transition(&row));
            }
            brought.claims.push(self.claim_of(&row, ask));
            brought.places.push(Found {
                place: (row.get(10), row.get::<_, Option<String>>(ACCOUNT).unwrap_or_default()),
                since: row.get(UNSEEN + 1),
                bell: row.get(UNSEEN + 2),
            });
        }
        Ok(brought)
    }

    fn cursor(&self) -> Option<Place> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows written, and whether a circuit has healed by that.
    async fn acknowledge(
        &self,
        client: &Object,
        settled: &[&Settlement],
    ) -> Result<(Vec<RowId>, bool), OutboxError> {
        if settled.is_empty() {
            return Ok((Vec::new(), false));
        }
        let columns = Columns::of(settled.iter().copied());
        let statement = client.prepare_cached(ACKNOWLEDGE).await?;
        let rows = client
            .query(
                &statement,
                &[
                    &columns.rows,
                    &columns.tokens,
                    &columns.started_at,
                    &columns.duration_ms,
                    &columns.statuses,
                    &columns.body_bytes,
                    &columns.verdicts,
                ],
            )
            .await?;
        let healed = rows.first().is_some_and(|row| row.get(1));
        Ok((rows.iter().map(|row| RowId::native(row.get(0))).collect(), healed))
    }

    async fn release(
        &self,
        client: &Object,
        settled: &[&Settlement],
    ) -> Result<Vec<(RowId, bool)>, OutboxError> {
        if settled.is_empty() {
            return Ok(Vec::new());
        }
        let columns = Columns::of(settled.iter().copied());
        let statement = client.prepare_cached(RELEASE).await?;
        let rows = client
            .query(
                &statement,
                &[
                    &columns.rows,
                    &columns.tokens,
                    &columns.verdicts,
                    &columns.delays,
                    &columns.started_at,
                    &columns.duration_ms,
                    &columns.statuses,
                    &columns.reasons,
                    &columns.body_bytes,
                    &i32::try_from(self.circuits.failures).unwrap_or(i32::MAX),
                    &self.circuits.pause.as_secs_f64(),
                    &self.circuits.max_pause.as_secs_f64(),
                ],
            )
            .await?;
        Ok(rows.iter().map(|row| (RowId::native(row.get(0)), row.get(1))).collect())
    }

    fn claim_of(&self, row: &Row, ask: &Ask<'_>) -> Claim {
        let seconds = |column: usize| Duration::from_secs_f64(row.get::<_, f64>(column).max(0.0));
        Claim {
            row: RowId::native(row.get(0)),
            lease: LeaseToken(ask.token),
            until: ask.until,
            task_id: row.get(2),
            task_type: row.get(3),
            lane: Lane(row.get(10)),
            attempt: u32::try_from(row.get::<_, i32>(12)).unwrap_or(1),
            since_first: seconds(13),
            horizon: seconds(14),
            owed_for: seconds(15),
            is_new: row.get(UNSEEN),
            prepared: self.preparer.prepare(row),
        }
    }
}

impl Outbox for NativeOutbox {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let claimed = patiently(self.patience, self.take(&client, room)).await??;
        client.give_back();
        Ok(claimed)
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<SettledRows, OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let (delivered, others): (Vec<&Settlement>, Vec<&Settlement>) = settlements
            .iter()
            .partition(|settlement| matches!(settlement.verdict, Verdict::Acknowledge | Verdict::Supersede));
        let (acknowledged, released) = tokio::join!(
            patiently(self.patience, self.acknowledge(&client, &delivered)),
            patiently(self.patience, self.release(&client, &others)),
        );
        if acknowledged.is_ok() && released.is_ok() {
            client.give_back();
        }
        let mut settled = SettledRows::default();
        let mut written: HashSet<RowId> = HashSet::new();
        // Each commits by itself: what one of them wrote is written although the other failed.
        match acknowledged.and_then(|answer| answer) {
            Ok((rows, healed)) => {
                settled.healed = healed;
                written.extend(rows);
            }
            Err(error) => settled.unwritten(&delivered, error),
        }
        match released.and_then(|answer| answer) {
            Ok(rows) => {
                settled.expired.extend(rows.iter().filter(|(_, expired)| *expired).map(|(row, _)| *row));
                written.extend(rows.into_iter().map(|(row, _)| row));
            }
            Err(error) => settled.unwritten(&others, error),
        }
        written.extend(&settled.unwritten);
        let rows = settlements.iter().map(|settlement| settlement.row);
        settled.lost.extend(rows.filter(|row| !written.contains(row)));
        Ok(settled)
    }

    async fn next_due(&self) -> Result<Option<Duration>, OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let row = patiently(self.patience, async {
            let statement = client.prepare_cached(NEXT_DUE).await?;
            client.query_opt(&statement, &[&FIRST_ROWS]).await
        })
        .await?;
        client.give_back();
        let seconds = row?.and_then(|row| row.get::<_, Option<f64>>(0));
        Ok(seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))))
    }

    async fn expire(&self) -> Result<u64, OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let expired = patiently(self.patience, async {
            let statement = client.prepare_cached(EXPIRE).await?;
            client.execute(&statement, &[&EXPIRE_ROWS]).await
        })
        .await?;
        client.give_back();
        Ok(expired?)
    }

    async fn ring(&self) -> Result<(), OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let rung = patiently(self.patience, client.batch_execute(super::RING)).await?;
        client.give_back();
        Ok(rung?)
    }
}

/// What all claims are asked with.
struct Ask<'a> {
    client: &'a Object,
    claim: Statement,
    room: &'a Room,
    token: Uuid,
    until: Instant,
}

/// What one statement brought, and how far it came.
#[derive(Default)]
struct Brought {
    claims: Vec<Claim>,
    transitions: Vec<Transition>,
    places: Vec<Found>,
    /// Whether that was the last place.
    all: bool,
    last: Option<Place>,
    recorded: Option<i64>,
    more: bool,
}

fn transition(row: &Row) -> Transition {
    Transition {
        task: (row.get(1), row.get(2)),
        task_type: row.get(3),
        from: row.get(4),
        to: row.get(5),
        at: row.get(6),
        task_created_at: row.get(7),
        previous: row.get::<_, Option<String>>(8).zip(row.get::<_, Option<SystemTime>>(9)),
    }
}

const JOURNAL: &str = include_str!("journal.sql");
const CLAIM: &str = concat!(include_str!("walk.sql"), include_str!("claim.sql"));
const CLAIM_KNOWN: &str = concat!(include_str!("known.sql"), include_str!("claim.sql"));
const ACKNOWLEDGE: &str = include_str!("acknowledge.sql");
const RELEASE: &str = include_str!("release.sql");
const NEXT_DUE: &str = include_str!("next_due.sql");
const EXPIRE: &str = include_str!("expire.sql");
/// Transitions in one go: enough to keep up with any seller, small enough to stay a short statement.
const JOURNAL_ROWS: i64 = 500;
const EXPIRE_ROWS: i64 = 1000;
/// Places that one statement of a walk visits: some five microseconds of index look-ups each.
const MIN_PLACES: i64 = 16;
const MAX_PLACES: i64 = 512;
/// Rows of a lane that are asked for their lease, one of which runs out first.
const FIRST_ROWS: i64 = 64;
/// The column with the account.
const ACCOUNT: usize = 24;
/// The column that says whether a walk came to the last lane; where it ended follows.
const VISITED_ALL: usize = 30;
/// The column that says whether a row's transition has not been handed out before; what is remembered
/// of its place follows.
const UNSEEN: usize = 33;
