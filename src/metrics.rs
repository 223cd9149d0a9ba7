//! Every name we publish, with its help and its labels.
//!
//! Labels are closed sets: never a task, an account, a host, a status code or somebody's text.
//! A task type that is neither AdCP's nor configured is `other`.

use std::collections::HashSet;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::outbox::{Source, Transition, Verdict};
use crate::task::{Status, task_types};
use crate::webhook::FailureReason;

macro_rules! names {
    ($($(#[doc = $help:literal])+ $kind:ident $name:ident = $text:literal;)*) => {
        $($(#[doc = $help])+ pub const $name: &str = $text;)*
        /// Every metric: its name, its type and its help.
        pub const ALL: &[(&str, &str, &str)] = &[$(($text, stringify!($kind), concat!($($help),+))),*];
        fn describe() {
            $(names!(@describe $kind $text, concat!($($help),+).trim());)*
        }
    };
    (@describe counter $name:literal, $help:expr) => { describe_counter!($name, $help) };
    (@describe gauge $name:literal, $help:expr) => { describe_gauge!($name, $help) };
    (@describe histogram $name:literal, $help:expr) => { describe_histogram!($name, $help) };
}

names! {
    /// Open tasks, by type and state.
    gauge TASKS_OPEN = "taskbell_tasks_open";
    /// Age of the oldest open task, in seconds; 0 when none is open.
    gauge TASK_OLDEST_OPEN = "taskbell_task_oldest_open_seconds";
    /// Open tasks older than the limit configured for their type.
    gauge TASKS_OVER_SLA = "taskbell_tasks_over_sla";
    /// From creation to the terminal state.
    histogram TASK_DURATION = "taskbell_task_duration_seconds";
    /// Time spent in a state before leaving it.
    histogram TASK_STATE = "taskbell_task_state_seconds";
    /// From the terminal state to the first attempt.
    histogram DELIVERY_LAG = "taskbell_delivery_lag_seconds";
    /// From the terminal state to the receiver's 2xx.
    histogram DELIVERY_ACCEPT = "taskbell_delivery_accept_seconds";
    /// Duration of attempts, by outcome.
    histogram ATTEMPT = "taskbell_attempt_seconds";
    /// Attempts, by outcome: delivered, or the reason of the failure.
    counter ATTEMPTS = "taskbell_attempts_total";
    /// Attempts with authentication that AdCP has deprecated, by scheme.
    counter LEGACY_ATTEMPTS = "taskbell_legacy_attempts_total";
    /// Deliveries that ended, by result: delivered, superseded, expired or invalid.
    counter DELIVERIES = "taskbell_deliveries_total";
    /// Webhooks owed, by source and state.
    gauge OUTBOX_ROWS = "taskbell_outbox_rows";
    /// How long the oldest webhook has been due, in seconds; waiting for a next try is not due.
    gauge OUTBOX_OLDEST_DUE = "taskbell_outbox_oldest_due_seconds";
    /// Webhooks owed whose horizon is within six hours.
    gauge OUTBOX_AT_RISK = "taskbell_outbox_at_risk_rows";
    /// Destinations of one account that fail, by what their circuit does: failing (still open),
    /// closed, probing or recovering.
    gauge LANES = "taskbell_lanes";
    /// Whether the LISTEN connection is up.
    gauge LISTENER_UP = "taskbell_listener_up";
    /// Looks at the table, by what caused them.
    counter WAKEUPS = "taskbell_wakeups_total";
    /// Attempts whose lease was lost before they were settled.
    counter LEASES_LOST = "taskbell_leases_lost_total";
    /// How full the database's notification queue is; at 1 every notifying commit fails.
    gauge NOTIFY_QUEUE = "taskbell_notify_queue_usage_ratio";
    /// Age of the oldest transaction that holds back vacuum, in seconds.
    gauge OLDEST_XMIN = "taskbell_database_oldest_xmin_seconds";
    /// When the gauges that read the database were last refreshed, as Unix time.
    gauge REFRESHED = "taskbell_gauges_refreshed_timestamp_seconds";
    /// Always 1, with the version as a label.
    gauge BUILD_INFO = "taskbell_build_info";
}

/// Causes of a look at the table.
pub const CAUSES: [&str; 4] = ["bell", "connected", "due", "safety_poll"];

/// Describes every metric and gives those without a task type their first value, so that a rate
/// over them is right from the first scrape.
pub fn publish(version: &'static str) {
    describe();
    gauge!(BUILD_INFO, "version" => version).set(1.0);
    for cause in CAUSES {
        counter!(WAKEUPS, "cause" => cause).increment(0);
    }
    for outcome in outcomes() {
        counter!(ATTEMPTS, "outcome" => outcome).increment(0);
    }
    for result in ["delivered", "superseded", "expired", "invalid"] {
        counter!(DELIVERIES, "result" => result).increment(0);
    }
    for scheme in SCHEMES {
        counter!(LEGACY_ATTEMPTS, "scheme" => scheme).increment(0);
    }
    counter!(LEASES_LOST).increment(0);
    gauge!(LISTENER_UP).set(0.0);
    for source in [Source::Native, Source::Sealed].map(Source::as_str) {
        for state in OUTBOX_STATES {
            gauge!(OUTBOX_ROWS, "source" => source, "state" => state).set(0.0);
        }
        gauge!(OUTBOX_OLDEST_DUE, "source" => source).set(0.0);
        gauge!(OUTBOX_AT_RISK, "source" => source).set(0.0);
    }
    for state in LANE_STATES {
        gauge!(LANES, "state" => state).set(0.0);
    }
    gauge!(NOTIFY_QUEUE).set(0.0);
    gauge!(OLDEST_XMIN).set(0.0);
}

/// The deprecated schemes (AdCP, `auth-scheme.json`).
const SCHEMES: [&str; 2] = ["Bearer", "HMAC-SHA256"];

/// What circuits do.
pub const LANE_STATES: [&str; 4] = ["failing", "closed", "probing", "recovering"];

/// The states of outbox rows.
pub const OUTBOX_STATES: [&str; 4] = ["pending", "in_flight", "expired", "invalid"];

fn outcomes() -> impl Iterator<Item = &'static str> {
    std::iter::once("delivered").chain(FailureReason::ALL.iter().map(|reason| reason.as_str()))
}

/// Bounds task types to a closed set of labels.
#[derive(Debug, Clone)]
pub struct TaskTypes(HashSet<String>);

impl TaskTypes {
    /// AdCP's own and the configured ones.
    pub fn new(extra: impl IntoIterator<Item = String>) -> Self {
        Self(task_types().map(str::to_owned).chain(extra).collect())
    }

    /// The label for a stored task type.
    #[must_use]
    pub fn label(&self, task_type: &str) -> String {
        self.0.get(task_type).map_or_else(|| "other".to_owned(), Clone::clone)
    }
}

/// Observes one state change. Call it once for each.
pub fn observe_transition(types: &TaskTypes, transition: &Transition) {
    let Some(from) = &transition.from else { return };
    let task_type = types.label(&transition.task_type);
    let since = |then: std::time::SystemTime| transition.at.duration_since(then).unwrap_or(Duration::ZERO);
    if let Ok(outcome) = transition.to.parse::<Status>()
        && outcome.is_terminal()
        && let Some(created) = transition.task_created_at
    {
        histogram!(TASK_DURATION, "task_type" => task_type.clone(), "outcome" => outcome.as_str())
            .record(since(created));
    }
    // The state was entered by the transition before this one. Where the journal no longer has
    // it, a task that was never worked on entered `submitted` when it was created; otherwise
    // nothing is known, and nothing is observed.
    let entered = match &transition.previous {
        Some((state, at)) if state == from => Some(*at),
        _ if from == Status::Submitted.as_str() => transition.task_created_at,
        _ => None,
    };
    if let (Ok(left), Some(entered)) = (from.parse::<Status>(), entered)
        && !left.is_terminal()
    {
        histogram!(TASK_STATE, "task_type" => task_type, "state" => from.clone()).record(since(entered));
    }
}

/// Observes the end of an attempt.
pub fn observe_attempt(duration: Duration, reason: Option<FailureReason>) {
    let outcome = reason.map_or("delivered", FailureReason::as_str);
    counter!(ATTEMPTS, "outcome" => outcome).increment(1);
    histogram!(ATTEMPT, "outcome" => outcome).record(duration);
}

/// Observes an attempt with deprecated authentication.
pub fn observe_legacy(scheme: &'static str) {
    counter!(LEGACY_ATTEMPTS, "scheme" => scheme).increment(1);
}

/// Observes a settled verdict that ends a delivery.
pub fn observe_verdict(verdict: Verdict, owed_for: Duration) {
    match verdict {
        Verdict::Acknowledge => {
            counter!(DELIVERIES, "result" => "delivered").increment(1);
            histogram!(DELIVERY_ACCEPT).record(owed_for);
        }
        Verdict::Supersede => counter!(DELIVERIES, "result" => "superseded").increment(1),
        Verdict::DeadLetter => counter!(DELIVERIES, "result" => "invalid").increment(1),
        Verdict::Release { .. } | Verdict::Unclaim { .. } => {}
    }
}

/// Observes rows whose horizon passed.
pub fn observe_expired(rows: u64) {
    counter!(DELIVERIES, "result" => "expired").increment(rows);
}
