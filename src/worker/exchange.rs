//! The exchanges with the database, at most one of each kind under way: a claim fills free slots, a
//! settle writes what has ended, who is asleep asks how things stand, and the journal is asked what was
//! before. Each is a task of its own, on a connection of its own, so that the database works on them while
//! attempts are on the wire.

use std::future::Future;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use super::Worker;
use super::attempt::World;
use crate::outbox::{Outbox, OutboxError};

/// An exchange that has not been answered.
pub(super) struct Underway<T> {
    pub(super) since: Instant,
    task: JoinHandle<Result<T, OutboxError>>,
}

impl<T: Send + 'static> Underway<T> {
    /// Begins it.
    pub(super) fn begin(exchange: impl Future<Output = Result<T, OutboxError>> + Send + 'static) -> Self {
        Self { since: Instant::now(), task: tokio::spawn(exchange) }
    }

    /// Does not wait for it any longer; what it was to write may be written.
    pub(super) fn give_up(self) {
        self.task.abort();
    }
}

/// Completes with the answer of what is under way, and since when it was; never where nothing is.
pub(super) async fn answered<T>(underway: &mut Option<Underway<T>>) -> (Instant, Result<T, OutboxError>) {
    let Some(exchange) = underway.as_mut() else { return std::future::pending().await };
    let answer = (&mut exchange.task).await;
    let since = exchange.since;
    *underway = None;
    let answer = match answer.map_err(JoinError::try_into_panic) {
        Ok(answer) => answer,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => Err(OutboxError::Silent),
    };
    (since, answer)
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// Since when each exchange that is under way has been waited for.
    pub(super) fn waiting_since(&self) -> impl Iterator<Item = Instant> {
        let claim = self.claims.underway.as_ref().map(|claim| claim.since);
        let settle = self.settlements.underway.as_ref().map(|settle| settle.since);
        let question = self.asking.as_ref().map(|question| question.since);
        let look_back = self.unmeasured.underway.as_ref().map(|question| question.since);
        [claim, settle, question, look_back].into_iter().flatten()
    }

    /// Gives up what only a worker that goes on wants to know; what has ended is written at once from now on.
    pub(super) fn wind_up(&mut self) {
        self.settlements.winding_up = true;
        if let Some(question) = self.asking.take() {
            question.give_up();
        }
        if let Some(question) = self.unmeasured.underway.take() {
            question.give_up();
        }
    }

    /// Says whether the last claim and the last settle could do their work.
    pub(super) fn publish_outbox_up(&self) {
        let up = self.claims.works && self.settlements.works;
        self.outbox_up.send_if_modified(|published| std::mem::replace(published, up) != up);
    }
}
