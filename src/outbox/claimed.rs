//! What a claim brings.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Lane, LeaseToken, OutboxError, RowId};
use crate::webhook::{Outcome, Prepared};

/// What one claim brought.
#[derive(Debug, Default)]
pub struct Claimed {
    /// State changes seen for the first time, in the order in which they were recorded.
    pub transitions: Vec<Transition>,
    /// Rows to attempt now.
    pub claims: Vec<Claim>,
    /// Some place gave all that it had room for, or the walk is not over: there may be more.
    pub more: bool,
    /// Some place where the bell said that something is brought nothing.
    pub missed: bool,
    /// How many changes have been recorded in all, rolled back ones included; `None` where that was not read.
    pub recorded: Option<i64>,
    /// Why there may be more than this. What stands above is ours all the same.
    pub fault: Option<OutboxError>,
}

/// One state change of one task, to be observed once.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// Its number: later changes of a task have higher ones.
    pub id: i64,
    /// The task, within its table.
    pub task: (i16, String),
    /// Its type as stored; not yet bounded to the labels that metrics may carry.
    pub task_type: String,
    /// The state it left; `None` when the task was inserted.
    pub from: Option<String>,
    /// The state it entered.
    pub to: String,
    /// When, by the database's clock.
    pub at: SystemTime,
    /// When the task was created, by its writer's clock.
    pub task_created_at: Option<SystemTime>,
}

/// That a task entered a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// The number of the change.
    pub id: i64,
    /// The state.
    pub state: String,
    /// When, by the database's clock.
    pub at: SystemTime,
}

/// A row under our lease.
#[derive(Debug)]
pub struct Claim {
    /// The row.
    pub row: RowId,
    /// The right to settle it.
    pub lease: LeaseToken,
    /// When the lease runs out at the earliest: counted from before we asked for it.
    pub until: Instant,
    /// The task, for logs.
    pub task_id: String,
    /// Its type as stored.
    pub task_type: String,
    /// Where it goes.
    pub lane: Lane,
    /// This attempt's number, from 1.
    pub attempt: u32,
    /// Since the first attempt began; zero on the first.
    pub since_first: Duration,
    /// From the first attempt to the moment after which none is made.
    pub horizon: Duration,
    /// How long the webhook has been owed, by the database's clock.
    pub owed_for: Duration,
    /// Whether it is claimed for the first time ever; an attempt that was given back is not counted,
    /// and so attempts can be numbered 1 more than once.
    pub is_new: bool,
    /// What to send, or what the attempt comes to without sending anything.
    pub prepared: Result<Prepared, Outcome>,
}

impl Claim {
    /// The size of its body; zero where nothing is sent.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.prepared.as_ref().map_or(0, |prepared| prepared.body.len())
    }

    /// What its body counts for, where a lane may have so many bytes.
    #[must_use]
    pub fn weight(&self, bytes_per_lane: usize) -> usize {
        self.body_bytes().min(bytes_per_lane)
    }
}
