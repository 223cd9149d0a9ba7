//! Where rows came from lately: a lane and an account there are a place.
//!
//! A look everywhere costs an index look-up for each place, sick ones too, and reads past what is in flight
//! or dead there; a long transaction of somebody else's can leave any amount of that. Behind what the last
//! claim saw at a place, nothing is in the way. What stands before that (the lease of a daemon that died, the
//! commit of a long transaction) is looked for everywhere unless the database takes long for it, and then
//! at some places at a time. Nothing here has to be right.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::REST;

/// A lane and an account there.
pub(super) type Place = (String, String);

/// The places that a daemon knows.
pub(super) struct Places {
    /// In the order of the index.
    known: BTreeMap<Place, Known>,
    /// The same, by the number that rings for them.
    by_bell: HashMap<i64, Place>,
    /// Where quick claims look: first where they have not been for longest.
    round: VecDeque<Place>,
    /// At how many places a walk reads everything.
    thorough: usize,
    /// Not before this does it do so at any.
    thorough_at: Instant,
    /// All that are known: first where walks have not read everything for longest.
    turns: VecDeque<Place>,
}

struct Known {
    /// Rows that were due before this are in flight, gone, or left for a walk.
    since: SystemTime,
    /// When rows were last found there.
    brought: Instant,
    /// Until when a bell's claim, too, begins behind what was seen, and from when on one may read everything.
    slow: Option<(Instant, Instant)>,
    in_the_round: bool,
}

/// A row that a claim has found, as far as it says something of its place.
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) since: SystemTime,
    pub(super) bell: i64,
}

/// Places, and past what they matter.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Visit {
    pub(super) lanes: Vec<String>,
    pub(super) accounts: Vec<String>,
    pub(super) since: Vec<Option<SystemTime>>,
}

impl Visit {
    /// One place.
    pub(super) fn of(lane: &str, account: &str, since: Option<SystemTime>) -> Self {
        Self { lanes: vec![lane.to_owned()], accounts: vec![account.to_owned()], since: vec![since] }
    }

    /// The only place.
    pub(super) fn single(&self) -> Option<(&str, &str, Option<SystemTime>)> {
        match (&self.lanes[..], &self.accounts[..], &self.since[..]) {
            ([lane], [account], [since]) => Some((lane, account, *since)),
            _ => None,
        }
    }

    /// Whether something is left out.
    pub(super) fn is_partial(&self) -> bool {
        self.since.iter().any(Option::is_some)
    }

    fn push(&mut self, (lane, account): &Place, since: Option<SystemTime>) {
        self.lanes.push(lane.clone());
        self.accounts.push(account.clone());
        self.since.push(since);
    }
}

/// What a walk need not read on its way.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) past: Visit,
    /// Known places where everything is read this time.
    thorough: Vec<Place>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            by_bell: HashMap::new(),
            round: VecDeque::new(),
            thorough: MAX_PLACES,
            thorough_at: Instant::now(),
            turns: VecDeque::new(),
        }
    }
}

impl Places {
    /// Where rows came from in the last seconds, and past what.
    pub(super) fn round(&mut self) -> Visit {
        let known = &mut self.known;
        self.round.retain(|place| {
            let Some(known) = known.get_mut(place) else { return false };
            known.in_the_round = known.brought.elapsed() < LATELY;
            known.in_the_round
        });
        let mut visit = Visit::default();
        for place in self.round.iter().take(MAX_VISIT) {
            visit.push(place, self.known.get(place).map(|known| known.since));
        }
        visit
    }

    /// The places that have rung; `None` where one of them is not known.
    pub(super) fn rung(&self, bells: &[i64]) -> Option<Visit> {
        let mut visit = Visit::default();
        for bell in bells {
            let place = self.by_bell.get(bell)?;
            let slow = |known: &&Known| known.slow.is_some_and(|(until, _)| Instant::now() < until);
            visit.push(place, self.known.get(place).filter(slow).map(|known| known.since));
        }
        Some(visit)
    }

    /// A bell's claim that read everything at a place took the database so long.
    pub(super) fn read_all(&mut self, place: &Place, took: Duration) {
        if let Some(known) = self.known.get_mut(place) {
            let again = Instant::now() + took * REST;
            known.slow = (took > SLOW).then_some((again + LATELY, again));
        }
    }

    /// Whether a bell's claim may read everything at a place.
    pub(super) fn may_read_all(&self, place: &Place) -> bool {
        let slow = self.known.get(place).and_then(|known| known.slow);
        slow.is_none_or(|(_, again)| Instant::now() >= again)
    }

    /// Where a walk reads everything although walks are dear: where that was left out for longest, but not where
    /// nothing may be taken. `None`: everywhere.
    pub(super) fn turns(&self, is_full: impl Fn(&str) -> bool) -> Option<HashSet<Place>> {
        if Instant::now() < self.thorough_at {
            return Some(HashSet::new());
        }
        if self.thorough >= MAX_PLACES {
            return None;
        }
        let may_give = self.turns.iter().filter(|(lane, _)| !is_full(lane));
        Some(may_give.take(self.thorough).cloned().collect())
    }

    /// What a walk need not read at the first so many places beyond one.
    pub(super) fn on_the_way(
        &self,
        after: Option<&Place>,
        at_most: usize,
        turns: Option<&HashSet<Place>>,
    ) -> Way {
        let Some(turns) = turns else { return Way::default() };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut way = Way::default();
        for (place, known) in self.known.range::<Place, _>((from, Bound::Unbounded)).take(at_most) {
            let thorough = turns.contains(place);
            way.past.push(place, (!thorough).then_some(known.since));
            way.thorough.extend(thorough.then(|| place.clone()));
        }
        way
    }

    /// A walk has come as far as there, or to the end; beside taking rows it took the database so long.
    pub(super) fn walked(&mut self, way: &Way, last: Option<&Place>, took: Duration) {
        let reached: HashSet<&Place> =
            way.thorough.iter().filter(|place| last.is_none_or(|last| *place <= last)).collect();
        let thorough = reached.len();
        if thorough > 0 {
            self.turns.retain(|place| !reached.contains(place));
            self.turns.extend(reached.into_iter().cloned());
        }
        // Or it read everything, or nothing is left out that is not known.
        let read_much = thorough > 0 || way.past.lanes.is_empty();
        if read_much && took > DEAR {
            self.thorough = (thorough / 2).max(1);
            self.thorough_at = Instant::now() + took * REST;
        } else if read_much && thorough >= self.thorough.min(self.known.len()) {
            self.thorough = (2 * self.thorough).min(MAX_PLACES);
        }
    }

    /// Learns from what a claim has found.
    pub(super) fn learn(&mut self, found: impl Iterator<Item = Found>) {
        let brought = Instant::now();
        for Found { place, since, bell } in found {
            if self.known.len() >= MAX_KNOWN {
                *self = Self::default();
            }
            self.by_bell.entry(bell).or_insert_with(|| place.clone());
            if !self.known.contains_key(&place) {
                self.turns.push_back(place.clone());
            }
            let known = Known { since, brought, slow: None, in_the_round: false };
            let known = self.known.entry(place.clone()).or_insert(known);
            known.since = known.since.max(since);
            known.brought = brought;
            if !std::mem::replace(&mut known.in_the_round, true) {
                self.round.push_back(place);
            }
        }
    }

    /// A round has come as far as there; the next one goes on behind it.
    pub(super) fn visited(&mut self, last: &Place) {
        if let Some(n) = self.round.iter().position(|place| place == last) {
            self.round.rotate_left(n + 1);
        }
    }
}

/// Where no row came from for so long, quick claims do not look any more.
const LATELY: Duration = Duration::from_secs(5);
/// Places that one claim visits: about a millisecond of index look-ups.
const MAX_VISIT: usize = 192;
/// Places that one statement of a walk visits at most: a few microseconds of index look-ups each.
pub(super) const MAX_PLACES: usize = 256;
/// A walk that takes the database so long, beside taking rows, has read past too much.
const DEAR: Duration = Duration::from_millis(20);
/// The same of the claim of one row.
const SLOW: Duration = Duration::from_millis(5);
/// Places remembered; then it begins anew.
const MAX_KNOWN: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn found(n: i64, seconds: u64) -> Found {
        let place = (format!("https://{n}.example:443"), "acct".to_owned());
        Found { place, since: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), bell: n }
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_goes_where_rows_came_from_lately_and_past_them() {
        let mut places = Places::default();
        places.learn([found(1, 10), found(2, 20), found(1, 30), found(1, 5)].into_iter());
        let (first, second) = (found(1, 30), found(2, 20));
        let round = places.round();
        assert_eq!(round.lanes, [first.place.0.clone(), second.place.0.clone()]);
        assert_eq!(round.since, [Some(first.since), Some(second.since)]);
        places.visited(&first.place);
        assert_eq!(places.round().lanes, [second.place.0.clone(), first.place.0.clone()]);
        tokio::time::advance(LATELY / 2).await;
        places.learn([found(2, 40)].into_iter());
        tokio::time::advance(LATELY / 2).await;
        assert_eq!(places.round().lanes, [second.place.0]);
        places.learn([found(1, 50)].into_iter());
        assert_eq!(places.round().lanes.len(), 2);
    }

    #[test]
    fn a_bell_leads_to_its_place() {
        let mut places = Places::default();
        places.learn([found(1, 10), found(2, 20)].into_iter());
        let rung = places.rung(&[2, 1]).unwrap();
        assert_eq!(rung.lanes, [found(2, 0).place.0, found(1, 0).place.0]);
        assert_eq!(rung.since, [None, None]);
        assert_eq!(places.rung(&[1, 3]), None);
    }

    fn nothing_is_full(_: &str) -> bool {
        false
    }

    fn some_places() -> Places {
        let mut places = Places::default();
        places.learn([found(3, 30), found(1, 10), found(2, 20)].into_iter());
        places
    }

    /// At which of the places a walk reads everything; it is told that this took so long.
    fn walk(places: &mut Places, last: Option<i64>, took: Duration) -> Vec<bool> {
        let turns = places.turns(nothing_is_full);
        let way = places.on_the_way(None, 10, turns.as_ref());
        places.walked(&way, last.map(|n| found(n, 0).place).as_ref(), took);
        way.past.since.iter().map(Option::is_none).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_walk_reads_everything_until_that_is_dear_and_then_here_and_there() {
        let mut places = some_places();
        const NOTHING_IS_LEFT_OUT: [bool; 0] = [];
        assert_eq!(walk(&mut places, None, DEAR), NOTHING_IS_LEFT_OUT);
        assert_eq!(walk(&mut places, None, 2 * DEAR), NOTHING_IS_LEFT_OUT);
        let way = places.on_the_way(None, 10, places.turns(nothing_is_full).as_ref());
        assert!(way.past.lanes.len() == 3 && way.past.lanes.is_sorted());
        assert_eq!(way.past.since, [1, 2, 3].map(|n| Some(found(n, n.unsigned_abs() * 10).since)));
        // At first nowhere, then at one after the other.
        assert_eq!(walk(&mut places, None, 2 * DEAR), [false, false, false]);
        for expected in
            [[false, false, true], [true, false, false], [false, true, false], [false, false, true]]
        {
            tokio::time::advance(2 * DEAR * REST).await;
            assert_eq!(walk(&mut places, None, 2 * DEAR), expected);
            assert_eq!(walk(&mut places, None, DEAR / 2), [false, false, false]);
        }
        // Where it did not come to, and where nothing may be taken, is not read.
        tokio::time::advance(2 * DEAR * REST).await;
        assert_eq!(walk(&mut places, Some(0), DEAR), [true, false, false]);
        let full = found(1, 0).place.0;
        assert_eq!(places.turns(|lane| lane == full), Some(HashSet::from([found(2, 0).place])));
        // Quick again: twice as many each time, until nothing is left out.
        assert_eq!(walk(&mut places, None, DEAR), [true, false, false]);
        assert_eq!(walk(&mut places, None, DEAR), [false, true, true]);
        while places.thorough < MAX_PLACES {
            assert_eq!(walk(&mut places, None, DEAR), [true, true, true]);
        }
        assert_eq!(walk(&mut places, None, DEAR), NOTHING_IS_LEFT_OUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_knows_nothing_learns_from_its_first_walk_that_it_is_dear() {
        let mut places = Places::default();
        places.walked(&Way::default(), None, 2 * DEAR);
        places.learn([found(3, 30), found(1, 10)].into_iter());
        assert_eq!(walk(&mut places, None, DEAR), [false, false]);
        tokio::time::advance(2 * DEAR * REST).await;
        assert_eq!(walk(&mut places, None, DEAR).iter().filter(|thorough| **thorough).count(), 1);
    }

    #[test]
    fn a_part_of_the_way_begins_where_it_is_told() {
        let places = Places { thorough: 0, ..some_places() };
        let after = found(1, 0).place;
        let turns = HashSet::new();
        let lanes = |at_most| places.on_the_way(Some(&after), at_most, Some(&turns)).past.lanes;
        assert_eq!(lanes(1), [found(2, 0).place.0]);
        assert_eq!(lanes(9), [found(2, 0).place.0, found(3, 0).place.0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bells_claim_begins_behind_what_was_seen_once_that_was_slow() {
        let mut places = Places::default();
        places.learn([found(1, 10), found(2, 20)].into_iter());
        let place = found(2, 20).place;
        places.read_all(&place, SLOW);
        assert!(!places.rung(&[1, 2]).unwrap().is_partial());
        places.read_all(&place, 2 * SLOW);
        assert_eq!(places.rung(&[1, 2]).unwrap().since, [None, Some(found(2, 20).since)]);
        assert!(places.may_read_all(&found(1, 0).place) && !places.may_read_all(&place));
        tokio::time::advance(2 * SLOW * REST).await;
        assert!(places.may_read_all(&place));
        // Perhaps it is not slow any more.
        tokio::time::advance(LATELY).await;
        assert!(!places.rung(&[2]).unwrap().is_partial());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut places = Places::default();
        places.learn((0..25_000).map(|n| found(n, 0)));
        assert!(places.known.len() <= MAX_KNOWN && places.by_bell.len() <= MAX_KNOWN);
        assert!(places.round.len() <= MAX_KNOWN && places.round().lanes.len() <= MAX_VISIT);
    }
}
