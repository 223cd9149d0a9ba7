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

    /// A claim is done: whether slots are short, for it brought most of what there was room for, and how many are in
    /// use. True where lanes may have more from now on.
    pub(super) fn adapt(&mut self, is_short: bool, in_use: usize) -> bool {
        let now = Instant::now();
        if is_short || self.lanes.len() > self.slots {
            self.lanes.retain(|_, served| now - *served < LATELY);
        }
        if is_short {
            self.slack = 0;
            if now >= self.not_before {
                self.seats = self.seats.min(self.slots.div_ceil(self.lanes.len().max(1)));
            }
            return false;
        }
        if self.seats == self.per_lane || in_use >= self.slots / 2 {
            return false;
        }
        self.slack += 1;
        if self.slack < SLACK {
            return false;
        }
        self.slack = 0;
        self.seats = (2 * self.seats).min(self.per_lane);
        self.not_before = now + LATELY;
        true
    }
}

/// Lanes that were served within this time share the slots.
const LATELY: Duration = Duration::from_secs(1);
/// The last claim of a walk comes to the end of the index, and the next one begins anew.
const SLACK: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(share: &mut Share, lanes: usize) {
        for n in 0..lanes {
            share.serve(&Lane(format!("https://{n}.example")));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_destinations_get_a_seat_each_and_few_get_all_they_may_have() {
        for (lanes, seats) in [(1, 8), (10, 8), (50, 8), (100, 4), (150, 3), (384, 1), (5000, 1)] {
            let mut share = Share::of(384, 8);
            serve(&mut share, lanes);
            assert!(!share.adapt(true, 384));
            assert_eq!(share.seats(), seats, "{lanes}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_slots_are_free_each_may_have_what_it_wants() {
        let mut share = Share::of(384, 8);
        serve(&mut share, 500);
        assert!(!share.adapt(false, 20));
        assert_eq!(share.seats(), 8, "500 with a webhook now and then");
        share.adapt(true, 384);
        assert!(!share.adapt(false, 200), "half of them are in use");
        share.adapt(false, 20);
        share.adapt(false, 20);
        share.adapt(true, 384);
        share.adapt(false, 20);
        share.adapt(false, 20);
        assert_eq!(share.seats(), 1, "not so often in a row");
        share.adapt(true, 384);
        // Most of them had no more than that.
        let raised: Vec<bool> = (0..9).map(|_| share.adapt(false, 20)).collect();
        assert_eq!(raised, [false, false, true, false, false, true, false, false, true]);
        assert_eq!(share.seats(), 8);
        share.adapt(true, 384);
        assert_eq!(share.seats(), 8, "it has just been tried");
        tokio::time::advance(LATELY).await;
        share.adapt(true, 384);
        assert_eq!(share.seats(), 8, "nobody was served lately");
        serve(&mut share, 500);
        share.adapt(true, 384);
        assert_eq!(share.seats(), 1);
    }
}
