//! What is known of one task, as the statements of this folder give it. Spans are seconds from
//! now by the database's clock, negative when past.

use serde::Deserialize;

use crate::task::Status;

/// One task and everything around its webhook.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Case {
    /// The row in its table; `None` when it is not there any more, or was never ours to see.
    pub task: Option<Task>,
    /// Whether its table is watched.
    pub watched: bool,
    /// Every state change that was recorded, oldest first.
    pub timeline: Vec<Change>,
    /// Who is to be rung; forgotten when the end was delivered.
    pub registration: Option<Registration>,
    /// Webhooks owed or settled, oldest first.
    pub deliveries: Vec<Delivery>,
    /// Who could deliver.
    pub daemon: Daemon,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Task {
    pub state: String,
    pub task_type: String,
    pub account_id: Option<String>,
    pub created_at: Option<String>,
    /// The AdCP Python SDK keeps a registration of its own in the row.
    pub sdk_registered: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Change {
    pub at: String,
    pub from: Option<String>,
    pub to: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Registration {
    pub scheme: String,
    pub signing_scope: Option<String>,
    pub url: String,
    pub operation_id: String,
    pub states: Vec<String>,
    pub registered_at: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Delivery {
    pub source: String,
    /// Whether the configuration serves this row's table.
    pub served: bool,
    pub delivery_id: i64,
    pub task_id: String,
    pub account_id: Option<String>,
    pub task_type: String,
    pub task_state: String,
    pub state: String,
    pub lane: Option<String>,
    pub url: Option<String>,
    pub operation_id: Option<String>,
    pub idempotency_key: String,
    pub attempt_count: Option<i64>,
    pub occurred_at: String,
    pub retry_until: Option<String>,
    /// The earliest next claim; of a row in flight, the end of its lease.
    pub next_attempt_at: Option<String>,
    pub settled_at: Option<String>,
    pub last_status: Option<i64>,
    pub last_reason: Option<String>,
    pub next_in: Option<f64>,
    pub horizon_in: Option<f64>,
    pub circuit: Option<Circuit>,
    pub attempts: Vec<Attempt>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Circuit {
    pub closed_until: Option<String>,
    pub opens_in: Option<f64>,
    pub probing: bool,
    pub failures: i64,
    pub recovered: Option<i64>,
    pub last_reason: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Attempt {
    pub attempt: i64,
    pub started_at: String,
    pub duration_ms: i64,
    pub status: Option<i64>,
    pub reason: Option<String>,
    pub verdict: String,
}

/// What the database's sessions tell about daemons.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Daemon {
    /// One listens.
    pub listens: bool,
    /// One is draining at this moment.
    pub awake: bool,
}

impl Case {
    /// The state that the task is in: by its row, or by the journal where the row is gone.
    pub(super) fn state(&self) -> Option<&str> {
        let recorded = self.timeline.last().map(|change| change.to.as_str());
        self.task.as_ref().map(|task| task.state.as_str()).or(recorded)
    }

    /// The recorded end of the task.
    pub(super) fn end(&self) -> Option<&Change> {
        self.timeline.iter().rev().find(|change| is_end(&change.to))
    }
}

/// Whether a task in this state has ended.
pub(super) fn is_end(state: &str) -> bool {
    state.parse().is_ok_and(Status::is_terminal)
}
