//! Where rows came from lately: a lane and an account there are a place.
//!
//! A walk over all places costs an index look-up for each, sick ones too, and reads past what is in flight
//! or dead there; a long transaction of somebody else's can leave any amount of that. A claim at
//! known places costs neither. What it misses the next walk finds, so nothing here has to be right.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A lane and an account there.
pub(super) type Place = (String, String);

/// The places that a daemon knows.
#[derive(Default)]
pub(super) struct Places {
    known: HashMap<Place, Known>,
    /// The same, by the number that rings for them.
    by_bell: HashMap<i64, Place>,
    /// Where quick claims look: first where they have not been for longest.
    round: VecDeque<Place>,
}

struct Known {
    /// Rows that were due before this are in flight, gone, or left for a walk.
    since: SystemTime,
    /// When rows were last found there.
    brought: Instant,
    in_the_round: bool,
}

/// A row that a claim has found, as far as it says something of its place.
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) since: SystemTime,
    pub(super) bell: i64,
}

/// What a claim at known places is asked for.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Visit {
    pub(super) lanes: Vec<String>,
    pub(super) accounts: Vec<String>,
    pub(super) since: Vec<Option<SystemTime>>,
}

impl Visit {
    /// The place, where it is one that a bell is about.
    pub(super) fn single(&self) -> Option<(&str, &str)> {
        match (&self.lanes[..], &self.accounts[..], &self.since[..]) {
            ([lane], [account], [None]) => Some((lane, account)),
            _ => None,
        }
    }

    fn push(&mut self, (lane, account): &Place, since: Option<SystemTime>) {
        self.lanes.push(lane.clone());
        self.accounts.push(account.clone());
        self.since.push(since);
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
            visit.push(self.by_bell.get(bell)?, None);
        }
        Some(visit)
    }

    /// Learns from what a claim has found.
    pub(super) fn learn(&mut self, found: impl Iterator<Item = Found>) {
        let brought = Instant::now();
        for Found { place, since, bell } in found {
            if self.known.len() >= MAX_KNOWN {
                *self = Self::default();
            }
            self.by_bell.entry(bell).or_insert_with(|| place.clone());
            let known = Known { since, brought, in_the_round: false };
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
const MAX_VISIT: usize = 150;
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
    fn a_bell_leads_to_its_place_whatever_was_seen_there() {
        let mut places = Places::default();
        places.learn([found(1, 10), found(2, 20)].into_iter());
        let rung = places.rung(&[2, 1]).unwrap();
        assert_eq!(rung.lanes, [found(2, 0).place.0, found(1, 0).place.0]);
        assert_eq!(rung.since, [None, None]);
        assert_eq!(places.rung(&[1, 3]), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut places = Places::default();
        places.learn((0..25_000).map(|n| found(n, 0)));
        assert!(places.known.len() <= MAX_KNOWN && places.by_bell.len() <= MAX_KNOWN);
        assert!(places.round.len() <= MAX_KNOWN && places.round().lanes.len() <= MAX_VISIT);
    }
}
