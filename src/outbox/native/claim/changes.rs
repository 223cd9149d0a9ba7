//! Past which numbers the state changes matter that nobody is owed a webhook for.
//!
//! They leave the outbox in the order of their numbers. What is gone is read past all the same while somebody's
//! transaction keeps it from being vacuumed away, so a look begins behind what was handed out two seconds ago;
//! transactions that took longer, and what another daemon did not finish, are found when everything is read.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::REST;

/// What a daemon has handed out.
#[derive(Default)]
pub(super) struct Changes {
    /// The newest number of each tenth of a second.
    lately: VecDeque<(Instant, i64)>,
    /// What is at most so large was handed out long enough ago.
    past: i64,
    /// Not before this is everything read again, unless that is asked for.
    all_at: Option<Instant>,
}

impl Changes {
    /// The number after which changes matter to a look; `None`: all of them do.
    pub(super) fn past(&mut self, everywhere: bool) -> Option<i64> {
        let now = Instant::now();
        while let Some((at, number)) = self.lately.front()
            && now - *at >= SLACK
        {
            self.past = self.past.max(*number);
            self.lately.pop_front();
        }
        let all = everywhere && self.all_at.is_none_or(|at| now >= at);
        (!all).then_some(self.past)
    }

    /// Changes up to this number were handed out, or stand in transactions that are still open.
    pub(super) fn handed_out(&mut self, newest: i64) {
        let now = Instant::now();
        match self.lately.back_mut() {
            Some((at, number)) if now - *at < SLACK / 20 => *number = (*number).max(newest),
            _ => self.lately.push_back((now, newest)),
        }
    }

    /// Reading all of them took so long.
    pub(super) fn read_all(&mut self, took: Duration) {
        self.all_at = Some(Instant::now() + took * REST);
    }
}

/// How long a transaction may take that recorded a change.
const SLACK: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_look_begins_behind_what_was_handed_out_two_seconds_ago() {
        let mut changes = Changes::default();
        assert_eq!(changes.past(false), Some(0));
        changes.handed_out(10);
        tokio::time::advance(SECOND).await;
        changes.handed_out(20);
        assert_eq!(changes.past(false), Some(0));
        tokio::time::advance(SECOND).await;
        assert_eq!(changes.past(false), Some(10));
        // A late one.
        changes.handed_out(7);
        tokio::time::advance(2 * SECOND).await;
        assert_eq!(changes.past(false), Some(20));
    }

    #[tokio::test(start_paused = true)]
    async fn everything_is_read_as_often_as_it_is_cheap() {
        let mut changes = Changes::default();
        changes.handed_out(10);
        tokio::time::advance(2 * SECOND).await;
        assert_eq!(changes.past(true), None);
        changes.read_all(SECOND);
        assert_eq!(changes.past(true), Some(10));
        tokio::time::advance(8 * SECOND).await;
        assert_eq!(changes.past(true), None);
        assert_eq!(changes.past(false), Some(10));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let mut changes = Changes::default();
        for n in 0..100_000 {
            changes.handed_out(n);
            tokio::time::advance(SECOND / 1000).await;
            changes.past(false);
        }
        assert!(changes.lately.len() <= 21, "{}", changes.lately.len());
    }
}
