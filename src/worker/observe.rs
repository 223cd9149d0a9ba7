//! State changes become metrics: at once what a change says by itself, a little later how long the state
//! before it was.
//!
//! That needs the change before, which the journal has. One question for many changes costs no more than
//! one for each, keeps none of them waiting for its POST, and finds what another daemon wrote meanwhile.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::attempt::World;
use super::exchange::Underway;
use super::{OUTAGE_PAUSE, Worker, chain};
use crate::metrics as names;
use crate::outbox::{CHANGES, Entered, Outbox, OutboxError, Transition};

/// Changes of which it is not known yet how long the state before them was.
#[derive(Default)]
pub(super) struct Unmeasured {
    waiting: Vec<Transition>,
    /// When they are asked for.
    at: Option<Instant>,
    /// What the question that is under way is about.
    asked: Vec<Transition>,
    pub(super) underway: Option<Underway<Vec<Option<Entered>>>>,
    /// How often the database has refused it.
    refused: u32,
}

impl Unmeasured {
    /// When to ask next.
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }
}

impl<O: Outbox, W: World> Worker<O, W> {
    /// Observes each transition once.
    pub(super) fn observe(&mut self, transitions: Vec<Transition>) {
        let mut unknown = 0;
        for transition in transitions {
            names::observe_transition(&self.settings.task_types, &transition);
            if transition.from.is_none() {
                continue;
            }
            if self.unmeasured.waiting.len() < MAX_WAITING {
                self.unmeasured.at.get_or_insert(Instant::now() + GATHER);
                self.unmeasured.waiting.push(transition);
            } else {
                names::observe_state(&self.settings.task_types, &transition, None);
                unknown += 1;
            }
        }
        if unknown > 0 {
            tracing::warn!(changes = unknown, "too many wait for the journal: {NOT_MEASURED}");
        }
    }

    /// How many more changes may be taken from the outbox that nobody is owed a webhook for. They are safe there.
    pub(super) fn room_for_changes(&self) -> usize {
        CHANGES.min((MAX_WAITING / 2).saturating_sub(self.unmeasured.waiting.len()))
    }

    /// Asks what was before, if it is time, unless that is being asked.
    pub(super) fn begin_looking_back(&mut self) {
        if self.unmeasured.underway.is_some() || self.unmeasured.at().is_none_or(|at| Instant::now() < at) {
            return;
        }
        if self.unmeasured.asked.is_empty() {
            let batch = self.unmeasured.waiting.len().min(CHANGES);
            self.unmeasured.asked = self.unmeasured.waiting.drain(..batch).collect();
            self.unmeasured.asked.sort_unstable_by_key(|change| change.id);
        }
        let (outbox, changes) = (self.outbox.clone(), self.unmeasured.asked.clone());
        self.unmeasured.underway = Some(Underway::begin(async move { outbox.before(&changes).await }));
    }

    /// Observes how long the states were.
    pub(super) fn looked_back(&mut self, answer: Result<Vec<Option<Entered>>, OutboxError>) {
        let now = Instant::now();
        match answer {
            Ok(before) => {
                let changes = std::mem::take(&mut self.unmeasured.asked);
                self.observe_states(changes, before);
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the journal could not be read");
                // An outage is waited for; what is refused again and again may be one row that it refuses.
                self.unmeasured.refused += u32::from(error.is_refusal());
                if self.unmeasured.refused < TRIES {
                    self.unmeasured.at = Some(now + OUTAGE_PAUSE);
                    return;
                }
                let changes = std::mem::take(&mut self.unmeasured.asked);
                self.give_up_states(changes);
            }
        }
        self.unmeasured.refused = 0;
        let was_full = self.unmeasured.waiting.len() >= MAX_WAITING / 2 - CHANGES;
        let pause = if self.unmeasured.waiting.len() >= CHANGES { Duration::ZERO } else { GATHER };
        self.unmeasured.at = (!self.unmeasured.waiting.is_empty()).then_some(now + pause);
        if was_full {
            self.look_now();
        }
    }

    /// Asks for the rest before we leave.
    pub(super) async fn look_back_once_more(&mut self) {
        let mut changes = std::mem::take(&mut self.unmeasured.asked);
        changes.append(&mut self.unmeasured.waiting);
        changes.sort_unstable_by_key(|change| change.id);
        let until = Instant::now() + LAST_LOOK_BACK;
        while !changes.is_empty() {
            let batch = changes.len().min(CHANGES);
            let Ok(Ok(before)) = timeout_at(until, self.outbox.before(&changes[..batch])).await else {
                return self.give_up_states(changes);
            };
            self.observe_states(changes.drain(..batch).collect(), before);
        }
    }

    fn observe_states(&self, changes: Vec<Transition>, before: Vec<Option<Entered>>) {
        // A change may have gone out with the one before it, which is not in the journal then.
        let mut latest: HashMap<(i16, String), Entered> = HashMap::new();
        for (change, journaled) in changes.into_iter().zip(before) {
            let seen = latest.get(&change.task).cloned();
            let entered = journaled.into_iter().chain(seen).max_by_key(|entered| entered.id);
            names::observe_state(&self.settings.task_types, &change, entered.as_ref());
            latest.insert(change.task, Entered { id: change.id, state: change.to, at: change.at });
        }
    }

    /// What began with the task is known all the same.
    fn give_up_states(&self, changes: Vec<Transition>) {
        tracing::warn!(changes = changes.len(), "the journal did not answer: {NOT_MEASURED}");
        let nothing = vec![None; changes.len()];
        self.observe_states(changes, nothing);
    }
}

/// How long changes wait for company.
const GATHER: Duration = Duration::from_millis(100);
/// More than that are not remembered: of those only what is known without a question is observed. What nobody is owed a
/// webhook for fills half of it.
const MAX_WAITING: usize = 10_000;
/// After so many refusals in a row a question is given up.
const TRIES: u32 = 3;
const LAST_LOOK_BACK: Duration = Duration::from_secs(1);
const NOT_MEASURED: &str = "how long those tasks were in the states before is not measured";
