//! How much a claim may take, and where it looks.

use std::collections::{HashMap, HashSet};

use super::{Claim, Lane, count};

/// How much a claim may take.
#[derive(Debug, Clone)]
pub struct Room {
    /// Rows in all.
    pub rows: usize,
    /// Rows for one lane, counting what is in flight there already.
    pub per_lane: usize,
    /// Rows of one lane that are looked at, not counting those in flight: no more than its bytes may hold.
    pub at_a_lane: usize,
    /// Bytes of documents in all; a single row is taken whatever its size.
    pub bytes: usize,
    /// The same for one lane. A larger row counts as so much.
    pub bytes_per_lane: usize,
    /// Lanes with attempts in flight.
    pub in_flight: Vec<(Lane, Held)>,
    /// Rows that failed before: some slots are kept for first attempts.
    pub retries: usize,
    /// State changes that nobody is owed a webhook for.
    pub changes: usize,
    /// Where to look.
    pub look: Look,
}

/// What one lane has in flight.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Attempts.
    pub rows: usize,
    /// Bytes of their bodies, as far as they count.
    pub bytes: usize,
}

impl Held {
    /// Whether a lane with so much in flight takes no more.
    #[must_use]
    pub fn fills(self, per_lane: usize, bytes_per_lane: usize) -> bool {
        self.rows >= per_lane || self.bytes >= bytes_per_lane
    }
}

impl Room {
    /// Room for so many rows, so many of them to one lane, without another limit, wherever they stand.
    #[must_use]
    pub fn of(rows: usize, per_lane: usize) -> Self {
        Self {
            rows,
            per_lane,
            at_a_lane: usize::MAX,
            bytes: usize::MAX,
            bytes_per_lane: usize::MAX,
            in_flight: Vec::new(),
            retries: usize::MAX,
            changes: CHANGES,
            look: Look::Whole,
        }
    }

    /// Whether a lane takes no more.
    pub(super) fn is_full(&self, lane: &str) -> bool {
        self.full_lanes().any(|full| full == lane)
    }

    /// What is left of it after a claim.
    pub(super) fn after(&self, claims: &[Claim]) -> Self {
        let mut lanes: HashMap<_, Held> = self.in_flight.iter().cloned().collect();
        let mut left = self.clone();
        for claim in claims {
            let weight = claim.weight(self.bytes_per_lane);
            let held = lanes.entry(claim.lane.clone()).or_default();
            held.rows += 1;
            held.bytes += weight;
            left.bytes = left.bytes.saturating_sub(weight);
            left.rows = left.rows.saturating_sub(1);
            left.retries = left.retries.saturating_sub(usize::from(claim.attempt > 1));
        }
        if left.bytes == 0 {
            left.rows = 0;
        }
        left.in_flight = lanes.into_iter().collect();
        left
    }

    /// Whether a claim has taken all that there was room for, in all or in some lane.
    pub(super) fn is_used_up_by(&self, claims: &[Claim]) -> bool {
        let left = self.after(claims);
        let full: HashSet<&str> = left.full_lanes().collect();
        left.rows == 0 || claims.iter().any(|claim| full.contains(claim.lane.0.as_str()))
    }

    /// The lanes that take no more.
    pub(super) fn full_lanes(&self) -> impl Iterator<Item = &str> {
        let full = |(_, held): &&(Lane, Held)| held.fills(self.per_lane, self.bytes_per_lane);
        self.in_flight.iter().filter(full).map(|(lane, _)| lane.0.as_str())
    }

    /// The lanes in flight as a statement takes them: full ones have all the rows there may be.
    pub(super) fn busy(&self) -> (Vec<&str>, Vec<i64>, Vec<i64>) {
        let (mut lanes, mut rows, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for (lane, held) in &self.in_flight {
            lanes.push(lane.0.as_str());
            let full = held.fills(self.per_lane, self.bytes_per_lane);
            rows.push(count(if full { held.rows.max(self.per_lane) } else { held.rows }));
            bytes.push(count(held.bytes));
        }
        (lanes, rows, bytes)
    }
}

/// Where a claim looks for due rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Everywhere: what it does not find, nobody may claim now.
    Whole,
    /// Everywhere; while that takes the database long, at places that are known only past what was seen there, but
    /// for some of them in turn, and where there are very many places, some of them. No proof of anything; what one such
    /// look misses, a later one finds.
    Wide,
    /// Where rows have come from lately, and only past those: quick, but no proof of anything.
    Quick,
    /// Where the bell said.
    At {
        /// The numbers that rang, of `taskbell.bell_of(lane, account)`.
        places: Vec<i64>,
        /// Whether state changes rang that nobody is owed a webhook for.
        changes: bool,
    },
}

impl Look {
    /// Whether it goes from place to place, known or not.
    #[must_use]
    pub fn is_walk(&self) -> bool {
        matches!(self, Self::Whole | Self::Wide)
    }
}

/// State changes in one go: enough to keep up with any seller, small enough to stay a short statement.
pub(crate) const CHANGES: usize = 500;
