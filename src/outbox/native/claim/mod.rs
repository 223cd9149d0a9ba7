//! Taking due rows: everywhere by a walk, at places that are known, or the one row that a bell is about.
//!
//! The three differ in where they look and what that costs; what they take and show is one text.

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

use places::{Found, Place, Places, Visit};

/// What a daemon remembers from one claim to the next. None of it has to be right.
#[derive(Default)]
pub(super) struct Memory {
    /// Where the last walk ended; the next one goes on after it.
    cursor: Mutex<Option<Place>>,
    places: Mutex<Places>,
}

impl NativeOutbox {
    /// Moves transitions into the journal and claims rows, each as far as its statement succeeded.
    pub(super) async fn take(&self, client: &Object, room: &Room) -> Result<Claimed, OutboxError> {
        let visit = match &room.look {
            Look::Whole => None,
            Look::Quick => Some(self.places().round()),
            Look::At { places, .. } => self.places().rung(places),
        };
        let text = match &visit {
            Some(visit) if visit.single().is_some() => ONE,
            Some(_) => AT_PLACES,
            None => EVERYWHERE,
        };
        let (journal, claim) = tokio::try_join!(client.prepare_cached(JOURNAL), client.prepare_cached(text))?;
        let lease = Lease { token: Uuid::new_v4(), until: Instant::now() + self.lease };
        let ask = Ask { client, claim, room, lease };
        // Both are on the wire at once; the database runs one after the other.
        let changes = count(room.changes);
        let journal_parameters: [&(dyn ToSql + Sync); 1] = [&changes];
        let transitions = async {
            match room.look {
                _ if room.changes == 0 => Ok(Vec::new()),
                Look::At { changes: false, .. } => Ok(Vec::new()),
                _ => client.query(&journal, &journal_parameters).await,
            }
        };
        let (transitions, brought) = tokio::join!(transitions, async {
            match &visit {
                _ if room.rows == 0 => Ok(Brought::default()),
                Some(visit) if visit.lanes.is_empty() => Ok(Brought::default()),
                Some(visit) => self.visit(&ask, visit).await,
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
                let found: HashSet<i64> = brought.places.iter().map(|found| found.bell).collect();
                claimed.missed = matches!(&room.look, Look::At { places, .. }
                                          if !places.iter().all(|bell| found.contains(bell)));
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
            let after = self.cursor().clone();
            let (lane, account) = after.as_ref().map(|(lane, account)| (lane, account)).unzip();
            let brought = self.ask(ask, &ask.claim, places, &[&lane, &account]).await?;
            let at_the_end = brought.all;
            *self.cursor() = brought.last.clone().filter(|_| !at_the_end);
            if !brought.claims.is_empty() || (at_the_end && from_the_first) {
                return Ok(brought);
            }
            from_the_first |= at_the_end;
            places = (places * 2).min(MAX_PLACES);
        }
    }

    /// Claims at known places.
    async fn visit(&self, ask: &Ask<'_>, visit: &Visit) -> Result<Brought, tokio_postgres::Error> {
        let mut at_places = ask.claim.clone();
        if let Some((lane, account)) = visit.single() {
            if ask.room.is_full(lane) {
                return Ok(Brought::default());
            }
            let retries = ask.room.retries > 0;
            let brought = self.lease(ask.client, &ask.claim, ask.lease, &[&lane, &account, &retries]).await?;
            if !brought.more {
                return Ok(brought);
            }
            at_places = ask.client.prepare_cached(AT_PLACES).await?;
        }
        let places = count(visit.lanes.len()) + 1;
        let brought =
            self.ask(ask, &at_places, places, &[&visit.lanes, &visit.accounts, &visit.since]).await?;
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
        let (bytes, bytes_per_lane) = (count(room.bytes), count(room.bytes_per_lane));
        let common: [&(dyn ToSql + Sync); 9] =
            [&rows, &per_lane, &lanes, &counts, &retries, &at_most, &bytes, &bytes_per_lane, &held];
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

    fn places(&self) -> MutexGuard<'_, Places> {
        self.memory.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
/// Places that one statement of a walk visits: some five microseconds of index look-ups each.
const MIN_PLACES: i64 = 16;
const MAX_PLACES: i64 = 512;
/// Columns of shown.sql.
const LANE: usize = 8;
const ACCOUNT: usize = 22;
/// Whether a walk came to the last lane; where it ended follows.
const VISITED_ALL: usize = 28;
/// Whether a row's transition has not been handed out before; what is remembered of its place follows.
const UNSEEN: usize = 31;
