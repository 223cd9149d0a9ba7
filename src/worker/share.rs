//! How many attempts each destination may have in flight: its fair share of the slots while they are short.
//!
//! Eight at each of 48 destinations fill 384 slots while 452 others wait, and each opens eight connections for what a
//! few would do: 20,000 webhooks to 500 destinations took 4,000 handshakes. Where the slots do not suffice for all,
//! each gets as many as there are for it; where some remain free, more again.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::outbox::Lane;

/// The seats of each lane.
#[derive(Debug)]
pub(super) struct Share {
    per_lane: usize,
    slots: usize,
    seats: usize,
    /// When rows of a lane were claimed last.
    lanes: HashMap<Lane, Instant>,
    /// Claims in a row after which slots were free.
    slack: usize,
    /// Before this, fewer seats were too few.
    not_before: Instant,
}

impl Share {
    /// Of so many slots, of which no lane may ever have more than `per_lane`.
    pub(super) fn of(slots: usize, per_lane: usize) -> Self {
        Self { per_lane, slots, seats: per_lane, lanes: HashMap::new(), slack: 0, not_before: Instant::now() }
    }

    /// Attempts that a lane may have in flight now.
    pub(super) fn seats(&self) -> usize {
        self.seats
    }

    /// Rows of a lane have been claimed.
    pub(super) fn serve(&mut self, lane: &Lane) {
        let now = Instant::now();
        match self.lanes.get_mut(lane) {
            Some(served) => *served = now,
            None => drop(self.lanes.insert(lane.clone(), now)),
        }
    }

    /// A claim is done: how it went, and how many slots are in use. True where lanes may have more from now on.
    pub(super) fn adapt(&mut self, claim: Filled, in_use: usize) -> bool {
        let now = Instant::now();
        if claim != Filled::Little || self.lanes.len() > self.slots {
            self.lanes.retain(|_, served| now - *served < LATELY);
        }
        let (before, fair) = (self.seats, self.per_lane.min(self.slots.div_ceil(self.lanes.len().max(1))));
        match claim {
            Filled::All if 2 * in_use >= self.slots => {
                self.slack = 0;
                if fair > self.seats || now >= self.not_before {
                    self.seats = fair;
                }
            }
            Filled::Little if in_use < self.slots && self.seats < self.per_lane => {
                self.slack += 1;
                if self.slack == SLACK {
                    self.slack = 0;
                    self.seats = (2 * self.seats).min(self.per_lane);
                    self.not_before = now + AGAIN;
                }
            }
            _ => {
                self.slack = 0;
                self.seats = self.seats.max(fair);
            }
        }
        self.seats > before
    }
}

/// How much of its room a claim has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// All, or the last walk did: more is waiting.
    All,
    Most,
    /// Half of it at most.
    Little,
}

/// Lanes that were served within this time share the slots: longer than most receivers take to answer.
const LATELY: Duration = Duration::from_secs(10);
/// So many claims in a row that leave slots free: the last one of a walk does so anyway, at the end of the index.
const SLACK: usize = 3;
/// After more seats were given, before there are fewer.
const AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(share: &mut Share, lanes: usize) {
        for n in 0..lanes {
            share.serve(&Lane(format!("https://{n}.example")));
        }
    }

    /// 384 slots, eight of them at most for each of so many lanes that wait.
    fn shared_by(lanes: usize) -> Share {
        let mut share = Share::of(384, 8);
        serve(&mut share, lanes);
        assert!(!share.adapt(Filled::All, 384));
        share
    }

    #[tokio::test(start_paused = true)]
    async fn many_destinations_get_a_seat_each_and_few_get_all_they_may_have() {
        for (lanes, seats) in [(1, 8), (10, 8), (50, 8), (100, 4), (150, 3), (384, 1), (5000, 1)] {
            assert_eq!(shared_by(lanes).seats(), seats, "{lanes}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_slots_are_free_each_may_have_what_it_wants() {
        let mut share = Share::of(384, 8);
        serve(&mut share, 500);
        assert!(!share.adapt(Filled::Little, 20));
        assert!(!share.adapt(Filled::All, 20), "bytes are short, not slots");
        assert_eq!(share.seats(), 8, "500 with a webhook now and then");
        share.adapt(Filled::All, 384);
        assert_eq!(share.seats(), 1);
        for filled in [Filled::Little, Filled::Little, Filled::Most, Filled::Little, Filled::Little] {
            assert!(!share.adapt(filled, 300), "not so often in a row");
        }
        share.adapt(Filled::All, 384);
        // Most of them had no more than that; hanging attempts hold many of the slots.
        let raised: Vec<bool> = (0..9).map(|_| share.adapt(Filled::Little, 300)).collect();
        assert_eq!(raised, [false, false, true, false, false, true, false, false, true]);
        assert_eq!(share.seats(), 8);
        share.adapt(Filled::All, 384);
        assert_eq!(share.seats(), 8, "it has just been tried");
        tokio::time::advance(AGAIN).await;
        share.adapt(Filled::All, 384);
        assert_eq!(share.seats(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_remain_share_what_others_leave() {
        for (filled, in_use) in [(Filled::All, 384), (Filled::Most, 100)] {
            let mut share = shared_by(500);
            assert_eq!(share.seats(), 1);
            tokio::time::advance(LATELY).await;
            serve(&mut share, 100);
            assert!(share.adapt(filled, in_use));
            assert_eq!(share.seats(), 4);
        }
        // 48 of a hundred are left, and take as long as a second.
        let mut share = shared_by(100);
        assert_eq!(share.seats(), 4);
        assert!((0..3).any(|_| share.adapt(Filled::Little, 48 * 4)));
        assert_eq!(share.seats(), 8);
    }
}
