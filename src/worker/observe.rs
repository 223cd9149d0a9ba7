//! State changes become metrics: at once what a change says by itself, a little later how long the state
//! before it was.
//!
//! That needs the change before, which the journal has. One question for many changes costs no more than
//! one for each, keeps none of them waiting for its POST, and finds what another daemon wrote meanwhile.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::attempt::World;
use super::exchange::Underway;
use super::{OUTAGE_PAUSE, Worker, chain};
use crate::metrics as names;
use crate::outbox::{Entered, Outbox, OutboxError, Transition};

/// Changes whose state before is to be asked for.
#[derive(Debug, Default)]
pub(super) struct Left {
    waiting: Vec<Transition>,
    /// When they are asked for.
    at: Option<Instant>,
    /// What the question that is under way is about.
    asked: Vec<Transition>,
}

impl Left {
    /// When to ask next.
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    fn add(&mut self, change: Transition, now: Instant) {
        self.waiting.push(change);
        self.at.get_or_insert(now + GATHER);
    }
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// Observes each transition once.
    pub(super) fn observe(&mut self, transitions: Vec<Transition>) {
        let now = Instant::now();
        for transition in transitions {
            names::observe_transition(&self.settings.task_types, &transition);
            if self.left.waiting.len() >= MAX_WAITING {
                names::observe_state(&self.settings.task_types, &transition, None);
            } else if transition.from.is_some() {
                self.left.add(transition, now);
            }
        }
    }

    /// Asks what was before, if it is time, unless that is being asked.
    pub(super) fn begin_looking_back(&mut self) {
        if self.exchange.looking_back.is_some() || self.left.at().is_none_or(|at| Instant::now() < at) {
            return;
        }
        let batch = self.left.waiting.len().min(BATCH);
        self.left.asked = self.left.waiting.drain(..batch).collect();
        self.left.asked.sort_unstable_by_key(|change| change.id);
        self.left.at = if self.left.waiting.is_empty() { None } else { self.left.at };
        let (outbox, changes) = (self.outbox.clone(), self.left.asked.clone());
        let task = tokio::spawn(async move { outbox.before(&changes).await });
        self.exchange.looking_back = Some(Underway { since: Instant::now(), task });
    }

    /// Observes how long the states were.
    pub(super) fn looked_back(&mut self, answer: Result<Vec<Option<Entered>>, OutboxError>) {
        let changes = std::mem::take(&mut self.left.asked);
        match answer {
            Ok(before) => {
                // A change may have gone out with the one before it, which is not in the journal then.
                let mut latest: HashMap<(i16, String), Entered> = HashMap::new();
                for (change, journaled) in changes.into_iter().zip(before) {
                    let seen = latest.get(&change.task).cloned();
                    let entered = journaled.into_iter().chain(seen).max_by_key(|entered| entered.at);
                    names::observe_state(&self.settings.task_types, &change, entered.as_ref());
                    latest.insert(change.task, Entered { state: change.to, at: change.at });
                }
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the journal could not be read");
                self.left.waiting.splice(0..0, changes);
                self.left.at = Some(Instant::now() + OUTAGE_PAUSE);
            }
        }
    }

    /// Asks for the rest before we leave.
    pub(super) async fn look_back_once_more(&mut self) {
        let mut changes = std::mem::take(&mut self.left.asked);
        changes.append(&mut self.left.waiting);
        changes.sort_unstable_by_key(|change| change.id);
        for batch in changes.chunks(BATCH) {
            let Ok(before) = self.outbox.before(batch).await else { return };
            self.left.asked = batch.to_vec();
            self.looked_back(Ok(before));
        }
    }
}

/// How long changes wait for company.
const GATHER: Duration = Duration::from_millis(100);
/// Changes in one question.
const BATCH: usize = 500;
/// More than that cannot be remembered: of those only what is known without a question is observed.
const MAX_WAITING: usize = 10_000;
