//! Tells a fault of ours from a fault of theirs: when every destination fails at once, it is us.

use std::collections::{HashSet, VecDeque};

use crate::outbox::Lane;
use crate::webhook::FailureReason;

/// The latest attempts, as far as they say something about the way out.
#[derive(Debug, Default)]
pub(super) struct Egress {
    recent: VecDeque<Option<Lane>>,
}

impl Egress {
    /// Notes how an attempt ended. True when it failed in the network and so did all the latest
    /// ones, to several destinations: then neither row nor lane is to blame.
    pub(super) fn is_down_after(&mut self, lane: &Lane, reason: Option<FailureReason>) -> bool {
        let failed =
            matches!(reason, Some(FailureReason::Dns | FailureReason::Connect | FailureReason::Timeout));
        self.recent.push_back(failed.then(|| lane.clone()));
        if self.recent.len() > ATTEMPTS {
            self.recent.pop_front();
        }
        let lanes: HashSet<&Lane> = self.recent.iter().flatten().collect();
        self.recent.len() == ATTEMPTS && self.recent.iter().all(Option::is_some) && lanes.len() >= LANES
    }
}

/// So many in a row: a few bad neighbours must not look like an outage of ours.
const ATTEMPTS: usize = 12;
const LANES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(n: usize) -> Lane {
        Lane(format!("https://{n}.example:443"))
    }

    #[test]
    fn only_failures_of_many_destinations_in_a_row_are_ours() {
        let mut egress = Egress::default();
        for n in 0..ATTEMPTS - 1 {
            assert!(!egress.is_down_after(&lane(n), Some(FailureReason::Dns)));
        }
        assert!(egress.is_down_after(&lane(0), Some(FailureReason::Connect)));
        // Whoever answers, whatever it is, proves that there is a way out.
        assert!(!egress.is_down_after(&lane(1), Some(FailureReason::ServerError)));
        for n in 0..ATTEMPTS - 1 {
            assert!(!egress.is_down_after(&lane(n), Some(FailureReason::Timeout)));
        }
        assert!(egress.is_down_after(&lane(0), Some(FailureReason::Timeout)));
        assert!(!egress.is_down_after(&lane(0), None));
    }

    #[test]
    fn one_dead_destination_is_not_ours() {
        let mut egress = Egress::default();
        for _ in 0..100 {
            assert!(!egress.is_down_after(&lane(0), Some(FailureReason::Timeout)));
        }
    }
}
