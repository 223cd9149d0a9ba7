//! Taking due rows: everywhere by a walk, at places that are known, or the one row that a bell is about.
//!
//! The three differ in where they look and what that costs; what they take and show is one text.

mod changes;
mod places;

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_postgres::Object;
use futures_util::TryStreamExt;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

use super::{NativeOutbox, transition};
use crate::outbox::{Claim, Claimed, Lane, LeaseToken, Look, OutboxError, Room, RowId, Transition, count};

use changes::Changes;
use places::{Found, MAX_PLACES, Place, Places, Visit};

/// What a daemon remembers from one claim to the next. None of it has to be right.
#[derive(Default)]
pub(super) struct Memory {
    /// Where the last walk ended; the next one goes on after it.
    cursor: Mutex<Option<Place>>,
    places: Mutex<Places>,
    changes: Mutex<Changes>,
}

impl NativeOutbox {
    /// Moves transitions into the journal and claims rows, each as far as its statement succeeded.
    pub(super) async fn take(&self, client: &Object, room: &Room) -> Result<Claimed, OutboxError> {
        let visit = match &room.look {
            Look::Whole | Look::Wide => None,
            Look::Quick => Some(self.places().round()),
            Look::At { places, .. } => self.places().rung(places),
        };
        let rung = matches!(room.look, Look::At { .. });
        let text = match &visit {
            Some(visit) if rung && visit.single().is_some() => ONE,
            Some(_) => AT_PLACES,
            None => EVERYWHERE,
        };
        let (journal, claim) = tokio::try_join!(client.prepare_cached(JOURNAL), client.prepare_cached(text))?;
        let lease = Lease { token: Uuid::new_v4(), until: Instant::now() + self.lease };
        let ask = Ask { client, claim, room, lease };
        // Both are on the wire at once; the database runs one after the other.
        let transitions = async {
            match room.look {
                _ if room.changes == 0 => Ok(Changed::default()),
                Look::At { changes: false, .. } => Ok(Changed::default()),
                _ => self.changes(client, &journal, room).await,
            }
        };
        let (transitions, brought) = tokio::join!(transitions, async {
            match &visit {
                _ if room.rows == 0 => Ok(Brought::default()),
                Some(visit) if visit.lanes.is_empty() => Ok(Brought::default()),
                Some(visit) if text == ONE => self.single(&ask, visit).await,
                Some(visit) => self.visit(&ask, &ask.claim, visit).await,
                None => self.walk(&ask).await,
            }
        });
        // Each commits by itself: what one of them gave counts although the other failed.
        let (mut claimed, mut read_all) = (Claimed::default(), false);
        match transitions {
            Ok(changes) => {
                read_all = changes.is_all;
                claimed.transitions.extend(changes.transitions);
            }
            Err(error) => claimed.fault = Some(error.into()),
        }
        match brought {
            Ok(brought) => {
                let found: HashSet<i64> = brought.places.iter().map(|found| found.bell).collect();
                claimed.missed = matches!(&room.look, Look::At { places, .. }
                                          if brought.partial || !places.iter().all(|bell| found.contains(bell)));
                self.places().learn(brought.places.into_iter());
                claimed.transitions.extend(brought.transitions);
                claimed.claims = brought.claims;
                claimed.recorded = brought.recorded;
                // Whoever begins behind what is dead has handed out none of it.
                if read_all && let Some(recorded) = brought.recorded {
                    self.past_changes().handed_out(recorded);
                }
                claimed.more = brought.more;
            }
            Err(error) => claimed.fault = Some(error.into()),
        }
        Ok(claimed)
    }

    /// The state changes that nobody is owed a webhook for, moved into the journal.
    async fn changes(
        &self,
        client: &Object,
        journal: &Statement,
        room: &Room,
    ) -> Result<Changed, tokio_postgres::Error> {
        let past = match room.look {
            Look::Whole => None,
            Look::Wide => self.past_changes().past(true),
            Look::Quick | Look::At { .. } => self.past_changes().past(false),
        };
        let began = Instant::now();
        let rows = client.query(journal, &[&count(room.changes), &past.unwrap_or(0)]).await;
        if past.is_none() {
            self.past_changes().read_all(began.elapsed());
        }
        let transitions: Vec<Transition> = rows?.iter().map(transition).collect();
        if let Some(newest) = transitions.last() {
            self.past_changes().handed_out(newest.id);
        }
        Ok(Changed { is_all: past.is_none() && transitions.len() < room.changes, transitions })
    }

    /// Claims everywhere, a part of it at a time, until there is something; unless it must be everything, not for long.
    async fn walk(&self, ask: &Ask<'_>) -> Result<Brought, tokio_postgres::Error> {
        let full: HashSet<&str> = ask.room.full_lanes().collect();
        let turns = match ask.room.look {
            Look::Whole => None,
            _ => self.places().turns(|lane| full.contains(lane)),
        };
        let (mut from_the_first, set_out) = (self.cursor().is_none(), Instant::now());
        // As many as there is room for rows; more where they have none.
        let mut places = ask.room.rows.clamp(MIN_PLACES, MAX_PLACES);
        loop {
            let after = self.cursor().clone();
            let way = self.places().on_the_way(after.as_ref(), places, turns.as_ref());
            let (lane, account) = after.as_ref().map(|(lane, account)| (lane, account)).unzip();
            let past = &way.past;
            let where_to: [&(dyn ToSql + Sync); 5] =
                [&lane, &account, &past.lanes, &past.accounts, &past.since];
            let began = Instant::now();
            let brought = self.ask(ask, &ask.claim, count(places), &where_to).await;
            let brought = brought.inspect_err(|_| self.places().walked(&way, None, began.elapsed()))?;
            let at_the_end = brought.all;
            let reading = brought.took.saturating_sub(TAKING * brought.rows());
            self.places().walked(&way, brought.last.as_ref().filter(|_| !at_the_end), reading);
            *self.cursor() = brought.last.clone().filter(|_| !at_the_end);
            if !brought.claims.is_empty() || (at_the_end && from_the_first) {
                return Ok(brought);
            }
            if ask.room.look == Look::Wide && set_out.elapsed() >= WALK {
                return Ok(Brought { more: true, ..brought });
            }
            from_the_first |= at_the_end;
            places = (places * 2).min(MAX_PLACES);
        }
    }

    /// Claims at the only place that a bell is about.
    async fn single(&self, ask: &Ask<'_>, visit: &Visit) -> Result<Brought, tokio_postgres::Error> {
        let Some((lane, account, mut since)) = visit.single() else { return Ok(Brought::default()) };
        if ask.room.is_full(lane) {
            return Ok(Brought::default());
        }
        let (retries, here) = (ask.room.retries > 0, (lane.to_owned(), account.to_owned()));
        loop {
            let place: [&(dyn ToSql + Sync); 4] = [&lane, &account, &retries, &since];
            let mut brought = self.lease(ask.client, &ask.claim, ask.lease, &place).await?;
            if brought.more {
                let at_places = ask.client.prepare_cached(AT_PLACES).await?;
                brought = self.visit(ask, &at_places, &Visit::of(lane, account, since)).await?;
            } else if since.is_none() {
                self.places().read_all(&here, brought.took);
            }
            brought.partial = since.is_some();
            // The bell may be about a row that was due before others that we have seen.
            if !brought.claims.is_empty() || since.take().is_none() || !self.places().may_read_all(&here) {
                return Ok(brought);
            }
        }
    }

    /// Claims at known places.
    async fn visit(
        &self,
        ask: &Ask<'_>,
        at_places: &Statement,
        visit: &Visit,
    ) -> Result<Brought, tokio_postgres::Error> {
        let places = count(visit.lanes.len()) + 1;
        let mut brought =
            self.ask(ask, at_places, places, &[&visit.lanes, &visit.accounts, &visit.since]).await?;
        brought.partial = visit.is_partial();
        if let Some(last) = &brought.last {
            self.places().visited(last);
        }
        Ok(brought)
    }

    async fn ask(
        &self,
        ask: &Ask<'_>,
        statement: &Statement,
        at_most: i64,
        places: &[&(dyn ToSql + Sync)],
    ) -> Result<Brought, tokio_postgres::Error> {
        let room = ask.room;
        let (lanes, counts, held) = room.busy();
        let (rows, per_lane, retries) = (count(room.rows), count(room.per_lane), count(room.retries));
        let (bytes, bytes_per_lane, at_a_lane) =
            (count(room.bytes), count(room.bytes_per_lane), count(room.at_a_lane));
        let common: [&(dyn ToSql + Sync); 10] = [
            &rows,
            &per_lane,
            &lanes,
            &counts,
            &retries,
            &at_most,
            &bytes,
            &bytes_per_lane,
            &held,
            &at_a_lane,
        ];
        self.lease(ask.client, statement, ask.lease, &[&common[..], places].concat()).await
    }

    /// Takes rows by one of the statements.
    async fn lease(
        &self,
        client: &Object,
        statement: &Statement,
        lease: Lease,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Brought, tokio_postgres::Error> {
        let (seconds, horizon) = (self.lease.as_secs_f64(), self.horizon.as_secs_f64());
        let common: [&(dyn ToSql + Sync); 3] = [&lease.token, &seconds, &horizon];
        let began = Instant::now();
        let mut rows = pin!(client.query_raw(statement, [&common[..], parameters].concat()).await?);
        // No row at all: there are no places after the cursor.
        let mut brought = Brought { all: true, ..Brought::default() };
        // One after the other, so that what was read does not stand beside what is rendered.
        while let Some(row) = rows.try_next().await? {
            if brought.last.is_none() {
                brought.all = row.get(VISITED_ALL);
                brought.last = Some((row.get(VISITED_ALL + 1), row.get(VISITED_ALL + 2)));
                brought.recorded = row.get(UNSEEN + 3);
                brought.more = row.get(UNSEEN + 4);
                brought.took = Duration::from_secs_f64(row.get::<_, f64>(UNSEEN + 5).max(0.0));
            }
            if row.get::<_, Option<i64>>(0).is_none() {
                break;
            }
            if row.get(UNSEEN) {
                brought.transitions.push(transition(&row));
            }
            brought.claims.push(self.claim_of(&row, lease));
            brought.places.push(Found {
                place: (row.get(LANE), row.get::<_, Option<String>>(ACCOUNT).unwrap_or_default()),
                since: row.get(UNSEEN + 1),
                bell: row.get(UNSEEN + 2),
            });
        }
        if brought.last.is_none() {
            brought.took = began.elapsed();
        }
        brought.claims.sort_unstable_by_key(|claim| claim.row);
        brought.transitions.sort_unstable_by_key(|transition| transition.id);
        Ok(brought)
    }

    fn claim_of(&self, row: &Row, lease: Lease) -> Claim {
        let seconds = |column: usize| Duration::from_secs_f64(row.get::<_, f64>(column).max(0.0));
        Claim {
            row: RowId::native(row.get(0)),
            lease: LeaseToken(lease.token),
            until: lease.until,
            task_id: row.get(2),
            task_type: row.get(3),
            lane: Lane(row.get(LANE)),
            attempt: u32::try_from(row.get::<_, i32>(10)).unwrap_or(1),
            since_first: seconds(11),
            horizon: seconds(12),
            owed_for: seconds(13),
            is_new: row.get(UNSEEN),
            prepared: self.preparer.prepare(row),
        }
    }

    fn cursor(&self) -> MutexGuard<'_, Option<Place>> {
        self.memory.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn past_changes(&self) -> MutexGuard<'_, Changes> {
        self.memory.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.memory.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// State changes that nobody is owed a webhook for.
#[derive(Default)]
struct Changed {
    transitions: Vec<Transition>,
    /// Whether that was all there were, from the first on.
    is_all: bool,
}

/// What all claims are asked with.
struct Ask<'a> {
    client: &'a Object,
    claim: Statement,
    room: &'a Room,
    lease: Lease,
}

#[derive(Clone, Copy)]
struct Lease {
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
    /// How long the database took.
    took: Duration,
    /// Rows that were due before others that we have seen may be there.
    partial: bool,
}

impl Brought {
    fn rows(&self) -> u32 {
        u32::try_from(self.claims.len()).unwrap_or(u32::MAX)
    }
}

const JOURNAL: &str = include_str!("../journal.sql");
const EVERYWHERE: &str = concat!(
    include_str!("walk.sql"),
    include_str!("rows.sql"),
    include_str!("lease.sql"),
    include_str!("probe.sql"),
    include_str!("shown.sql")
);
const AT_PLACES: &str = concat!(
    include_str!("known.sql"),
    include_str!("rows.sql"),
    include_str!("lease.sql"),
    include_str!("probe.sql"),
    include_str!("shown.sql")
);
const ONE: &str = concat!(include_str!("one.sql"), include_str!("lease.sql"), include_str!("shown.sql"));
/// Places that the first statement of a walk visits.
const MIN_PLACES: usize = 16;
/// How long a walk goes on where there is nothing, before other looks have their turn: a bell waits for it.
const WALK: Duration = Duration::from_millis(20);
/// Reading everything is paid with so many times its length without.
const REST: u32 = 8;
/// What taking a row costs in a walk, at a generous guess.
const TAKING: Duration = Duration::from_micros(200);
/// Columns of shown.sql.
const LANE: usize = 8;
const ACCOUNT: usize = 22;
/// Whether a walk came to the last lane; where it ended follows.
const VISITED_ALL: usize = 28;
/// Whether a row's transition has not been handed out before; what is remembered of its place follows.
const UNSEEN: usize = 31;
