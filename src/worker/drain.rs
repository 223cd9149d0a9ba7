//! The second phase of a stop: what is in flight ends and is settled, the rest is given back.

use std::time::Duration;

use metrics::histogram;
use tokio::time::{Instant, sleep_until, timeout};

use super::attempt::{Settled, Ticket, World, Writing};
use super::exchange::answered;
use super::{Worker, chain};
use crate::metrics as names;
use crate::outbox::{Claimed, Outbox, OutboxError, Verdict};

impl<O: Outbox, W: World> Worker<O, W> {
    /// Settles what ends within the grace, and gives the rest back. What cannot be written until
    /// then is repeated when its lease runs out.
    pub(super) async fn drain(mut self) {
        // Nobody is silent for our sake any more, and whoever sleeps takes over.
        let leaving = self.leave();
        self.wind_up();
        self.settle_the_rest().await;
        // If the database does not answer, the others find by themselves that we are gone.
        let _ = timeout(STOP_PATIENCE, async {
            self.look_back_once_more().await;
            leaving.await
        })
        .await;
    }

    async fn settle_the_rest(&mut self) {
        let began = Instant::now();
        let deadline = began + self.settings.grace;
        let last_try = deadline + LAST_TRY;
        loop {
            let now = Instant::now();
            if now >= deadline {
                self.attempts.abort_all();
                while let Some(ended) = self.attempts.join_next_with_id().await {
                    self.collect(ended);
                }
            }
            self.collect_ended();
            self.begin_settle();
            let exchanging = self.claims.underway.is_some() || self.settlements.underway.is_some();
            if self.attempts.is_empty() && self.finished.is_empty() && !exchanging {
                return;
            }
            if now >= last_try {
                let rows = self.finished.len() + self.settlements.being_written.len();
                tracing::error!(rows, "not settled: repeated when their leases run out");
                return;
            }
            // A database that does not answer must not hold up a stop: what hung when it was asked for is
            // given up, what is asked since then has until the end.
            let patience = self
                .waiting_since()
                .map(|since| if since < began { began + STOP_PATIENCE } else { last_try });
            let end = if now < deadline { deadline } else { last_try };
            let give_up = patience.min().unwrap_or(end).min(end);
            self.due_back.send_replace(give_up);
            tokio::select! {
                Some(ended) = self.attempts.join_next_with_id() => self.collect(ended),
                (_, answer) = answered(&mut self.claims.underway) => self.give_back(answer),
                (_, answer) = answered(&mut self.settlements.underway) => self.written(answer),
                () = sleep_until(self.settlements.again_at.min(end)),
                    if self.settlements.underway.is_none() && !self.finished.is_empty() => {}
                () = sleep_until(give_up) => self.give_up(began),
            }
        }
    }

    /// What a claim brings after the stop is not begun.
    fn give_back(&mut self, answer: Result<Claimed, OutboxError>) {
        let claimed = match answer {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::error!(error = %chain(&error), "the outbox could not be read");
                return;
            }
        };
        self.observe(claimed.transitions);
        for claim in claimed.claims.iter().filter(|claim| claim.is_new) {
            // Its next claim is not the first any more.
            histogram!(names::DELIVERY_LAG).record(claim.owed_for);
        }
        self.finished.extend(claimed.claims.into_iter().map(|claim| {
            Settled::without_attempt(&Ticket::of(&claim), Verdict::Unclaim { after: Duration::ZERO }, None)
        }));
    }

    /// Exchanges from before the stop that have not been answered in time: what was to be written
    /// may have been.
    fn give_up(&mut self, stop: Instant) {
        let now = Instant::now();
        let overdue = |since: Instant| since < stop && now >= stop + STOP_PATIENCE;
        if let Some(claim) = self.claims.underway.take_if(|claim| overdue(claim.since)) {
            claim.give_up();
        }
        if let Some(settle) = self.settlements.underway.take_if(|settle| overdue(settle.since)) {
            settle.give_up();
            for mut ended in std::mem::take(&mut self.settlements.being_written) {
                ended.writing = Writing::InDoubt;
                self.finished.push(ended);
            }
        }
    }
}

/// An exchange is over in milliseconds, unless the database does not answer.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// When the grace is over, for giving back what was still in flight.
const LAST_TRY: Duration = Duration::from_secs(2);
