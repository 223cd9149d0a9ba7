//! Every name we publish, with its help and its labels.
//!
//! Labels are closed sets: never a task, an account, a host, a status code or somebody's text.
//! A task type that is neither AdCP's nor configured is `other`.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::outbox::{Entered, Source, Transition, Verdict};
use crate::task::{Status, task_types};
use crate::webhook::FailureReason;

macro_rules! names {
    ($($(#[doc = $help:literal])+ $kind:ident $name:ident = $text:literal $([$($label:ident),+])?;)*) => {
        $($(#[doc = $help])+ pub const $name: &str = $text;)*
        /// Every metric.
        pub const ALL: &[Metric] = &[$(Metric {
            name: $text,
            kind: Kind::$kind,
            help: concat!($($help),+),
            labels: &[$($(Label::$label),+)?],
        }),*];
    };
}

names! {
    /// Open tasks, by type and state.
    Shared TASKS_OPEN = "taskbell_tasks_open" [TaskType, OpenState];
    /// Age of the oldest open task, in seconds; 0 when none is open.
    Shared TASK_OLDEST_OPEN = "taskbell_task_oldest_open_seconds" [TaskType, OpenState];
    /// Open tasks older than the limit configured for their type.
    Shared TASKS_OVER_SLA = "taskbell_tasks_over_sla" [TaskType];
    /// From creation to the terminal state.
    Histogram TASK_DURATION = "taskbell_task_duration_seconds" [TaskType, TaskOutcome];
    /// Time spent in a state before leaving it.
    Histogram TASK_STATE = "taskbell_task_state_seconds" [TaskType, OpenState];
    /// From the terminal state to the first attempt.
    Histogram DELIVERY_LAG = "taskbell_delivery_lag_seconds";
    /// From the terminal state to the receiver's 2xx.
    Histogram DELIVERY_ACCEPT = "taskbell_delivery_accept_seconds";
    /// Duration of attempts that sent something or tried to, by outcome.
    Histogram ATTEMPT = "taskbell_attempt_seconds" [AttemptOutcome];
    /// Attempts, by outcome: delivered, or the reason of the failure, also where nothing could be
    /// sent.
    Counter ATTEMPTS = "taskbell_attempts_total" [AttemptOutcome];
    /// Attempts with authentication that AdCP has deprecated, by scheme.
    Counter LEGACY_ATTEMPTS = "taskbell_legacy_attempts_total" [Scheme];
    /// Deliveries that ended, by result: delivered, superseded, expired or invalid.
    Counter DELIVERIES = "taskbell_deliveries_total" [Result];
    /// Webhooks owed, by source and state.
    Shared OUTBOX_ROWS = "taskbell_outbox_rows" [Source, RowState];
    /// How long the oldest webhook has been due, in seconds; what waits for its next try, or behind
    /// a circuit that is closed or recovering, is not due.
    Shared OUTBOX_OLDEST_DUE = "taskbell_outbox_oldest_due_seconds" [Source];
    /// Webhooks owed whose horizon is within six hours.
    Shared OUTBOX_AT_RISK = "taskbell_outbox_at_risk_rows" [Source];
    /// Pairs of a destination and an account that fail and are owed something, by what their circuit
    /// does: failing (still open), closed, probing or recovering.
    Shared LANES = "taskbell_lanes" [Circuit];
    /// Whether the LISTEN connection is up.
    Gauge LISTENER_UP = "taskbell_listener_up";
    /// Looks at the table, by what caused them.
    Counter WAKEUPS = "taskbell_wakeups_total" [Cause];
    /// Rests for the sake of sellers who kept the database busy (`worker.yield_for`).
    Counter RESTS = "taskbell_rests_total";
    /// Attempts whose lease was lost before they were settled.
    Counter LEASES_LOST = "taskbell_leases_lost_total";
    /// How full the database's notification queue is; at 1 every notifying commit fails.
    Shared NOTIFY_QUEUE = "taskbell_notify_queue_usage_ratio";
    /// Age of the oldest transaction that holds back vacuum, in seconds; NaN where the daemon's role
    /// may not see those of others (it needs `pg_read_all_stats`).
    Shared OLDEST_XMIN = "taskbell_database_oldest_xmin_seconds";
    /// When this daemon last refreshed the gauges that read the database, as Unix time; 0 while
    /// it is another's turn.
    Shared REFRESHED = "taskbell_gauges_refreshed_timestamp_seconds";
    /// Always 1, with the version as a label.
    Gauge BUILD_INFO = "taskbell_build_info" [Version];
}

/// What is published under one name.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its type, and who knows its value.
    pub kind: Kind,
    help: &'static str,
    /// Its labels; none of their sets is open.
    pub labels: &'static [Label],
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Counts what this daemon did.
    Counter,
    /// What is so at this daemon.
    Gauge,
    /// A gauge that reads the database: one daemon of several refreshes it, and at the others it
    /// is zero. Take the `max`.
    Shared,
    /// Measures what this daemon saw.
    Histogram,
}

impl Kind {
    /// The word in `# TYPE`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge | Self::Shared => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A label and the closed set of its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is its name")]
pub enum Label {
    TaskType,
    OpenState,
    TaskOutcome,
    AttemptOutcome,
    Scheme,
    Result,
    Source,
    RowState,
    Circuit,
    Cause,
    Version,
}

impl Label {
    /// Its name in a series.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TaskType => "task_type",
            Self::OpenState | Self::RowState | Self::Circuit => "state",
            Self::TaskOutcome | Self::AttemptOutcome => "outcome",
            Self::Scheme => "scheme",
            Self::Result => "result",
            Self::Source => "source",
            Self::Cause => "cause",
            Self::Version => "version",
        }
    }

    /// Every value that it can have.
    #[must_use]
    pub fn values(self, types: &TaskTypes) -> Vec<String> {
        let statuses = |terminal| {
            let these = Status::ALL.into_iter().filter(move |status| status.is_terminal() == terminal);
            these.map(Status::as_str).collect::<Vec<_>>()
        };
        let values = match self {
            Self::TaskType => return types.labels().map(str::to_owned).collect(),
            Self::OpenState => statuses(false),
            Self::TaskOutcome => statuses(true),
            Self::AttemptOutcome => outcomes().collect(),
            Self::Scheme => SCHEMES.to_vec(),
            Self::Result => RESULTS.to_vec(),
            Self::Source => [Source::Native, Source::Sealed].map(Source::as_str).to_vec(),
            Self::RowState => OUTBOX_STATES.to_vec(),
            Self::Circuit => LANE_STATES.to_vec(),
            Self::Cause => CAUSES.to_vec(),
            Self::Version => vec![VERSION],
        };
        values.into_iter().map(str::to_owned).collect()
    }
}

impl Metric {
    /// What it says, in a sentence or two.
    #[must_use]
    pub fn help(&self) -> &'static str {
        self.help.trim()
    }

    /// The labels of every series that it can have.
    #[must_use]
    pub fn series(&self, types: &TaskTypes) -> Vec<Vec<metrics::Label>> {
        self.labels.iter().fold(vec![Vec::new()], |series, label| {
            let with = |value: &String| {
                let pair = metrics::Label::new(label.name(), value.clone());
                series.iter().map(move |labels| [labels.as_slice(), std::slice::from_ref(&pair)].concat())
            };
            label.values(types).iter().flat_map(with).collect()
        })
    }

    fn describe(&self) {
        match self.kind {
            Kind::Counter => describe_counter!(self.name, self.help()),
            Kind::Gauge | Kind::Shared => describe_gauge!(self.name, self.help()),
            Kind::Histogram => describe_histogram!(self.name, self.help()),
        }
    }
}

/// Describes every metric and gives every counter and gauge its first value, so that a rate over
/// them is right from the first scrape. Of histograms, which are twenty series each, only those
/// that surely come: see [`expect`].
pub fn publish(types: &TaskTypes) {
    for metric in ALL {
        metric.describe();
        for labels in metric.series(types) {
            match metric.kind {
                Kind::Counter => counter!(metric.name, labels).increment(0),
                Kind::Gauge | Kind::Shared => gauge!(metric.name, labels).set(0.0),
                Kind::Histogram if metric.labels.is_empty() => drop(histogram!(metric.name)),
                Kind::Histogram => {}
            }
        }
    }
    drop(histogram!(ATTEMPT, "outcome" => DELIVERED));
    gauge!(BUILD_INFO, "version" => VERSION).set(1.0);
}

/// Gives the task histograms of one type their first, empty buckets: the first observation of a
/// series that was not there before is lost to a rate.
pub fn expect(types: &TaskTypes, task_type: &str) {
    let task_type = types.label(task_type);
    for outcome in Label::TaskOutcome.values(types) {
        drop(histogram!(TASK_DURATION, "task_type" => task_type.clone(), "outcome" => outcome));
    }
    for state in Label::OpenState.values(types) {
        drop(histogram!(TASK_STATE, "task_type" => task_type.clone(), "state" => state));
    }
}

/// Sets the gauges that read the database to zero: another daemon refreshes them now, or nobody
/// can. An old value that stayed would be taken for today's.
pub fn forget_shared(types: &TaskTypes) {
    for metric in ALL.iter().filter(|metric| metric.kind == Kind::Shared) {
        for labels in metric.series(types) {
            gauge!(metric.name, labels).set(0.0);
        }
    }
}

/// Causes of a look at the table.
pub const CAUSES: [&str; 4] = ["bell", "connected", "due", "safety_poll"];

/// What circuits do.
pub const LANE_STATES: [&str; 4] = ["failing", "closed", "probing", "recovering"];

/// The states of outbox rows.
pub const OUTBOX_STATES: [&str; 4] = ["pending", "in_flight", "expired", "invalid"];

/// How a delivery ends.
const RESULTS: [&str; 4] = ["delivered", "superseded", "expired", "invalid"];

/// The deprecated schemes (AdCP, `auth-scheme.json`).
const SCHEMES: [&str; 2] = ["Bearer", "HMAC-SHA256"];

const DELIVERED: &str = "delivered";
const OTHER: &str = "other";
const VERSION: &str = env!("CARGO_PKG_VERSION");

fn outcomes() -> impl Iterator<Item = &'static str> {
    std::iter::once(DELIVERED).chain(FailureReason::ALL.iter().map(|reason| reason.as_str()))
}

/// Bounds task types to a closed set of labels.
#[derive(Debug, Clone)]
pub struct TaskTypes(BTreeSet<String>);

impl TaskTypes {
    /// AdCP's own and the configured ones.
    pub fn new(extra: impl IntoIterator<Item = String>) -> Self {
        Self(task_types().map(str::to_owned).chain(extra).collect())
    }

    /// The label for a stored task type.
    #[must_use]
    pub fn label(&self, task_type: &str) -> String {
        self.0.get(task_type).map_or_else(|| OTHER.to_owned(), Clone::clone)
    }

    /// Every label.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str).filter(|name| *name != OTHER).chain([OTHER])
    }
}

/// Observes one state change. Call it once for each.
pub fn observe_transition(types: &TaskTypes, transition: &Transition) {
    let Ok(to) = transition.to.parse::<Status>() else { return };
    if !to.is_terminal() {
        expect(types, &transition.task_type);
    } else if let (Some(_), Some(created)) = (&transition.from, transition.task_created_at) {
        histogram!(TASK_DURATION, "task_type" => types.label(&transition.task_type), "outcome" => to.as_str())
            .record(between(created, transition.at));
    }
}

/// Observes how long the state was that a change has ended. `entered` is what the journal says of the change before
/// it. Call it once for each change.
pub fn observe_state(types: &TaskTypes, transition: &Transition, entered: Option<&Entered>) {
    let Some(from) = &transition.from else { return };
    // Where the journal does not have the change before, a task that was never worked on entered
    // `submitted` when it was created; otherwise nothing is known, and nothing is observed.
    let entered = match entered {
        Some(entered) if entered.state == *from => Some(entered.at),
        _ if from == Status::Submitted.as_str() => transition.task_created_at,
        _ => None,
    };
    if let (Ok(left), Some(entered)) = (from.parse::<Status>(), entered)
        && !left.is_terminal()
    {
        let task_type = types.label(&transition.task_type);
        histogram!(TASK_STATE, "task_type" => task_type, "state" => left.as_str())
            .record(between(entered, transition.at));
    }
}

/// Zero where clocks disagree.
fn between(then: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or(Duration::ZERO)
}

/// Observes the end of an attempt.
pub fn observe_attempt(duration: Duration, reason: Option<FailureReason>) {
    let outcome = reason.map_or(DELIVERED, FailureReason::as_str);
    counter!(ATTEMPTS, "outcome" => outcome).increment(1);
    histogram!(ATTEMPT, "outcome" => outcome).record(duration);
}

/// Observes an attempt that ended before anything was sent: it took no time worth measuring.
pub fn observe_unsent(reason: FailureReason) {
    counter!(ATTEMPTS, "outcome" => reason.as_str()).increment(1);
}

/// Observes an attempt with deprecated authentication.
pub fn observe_legacy(scheme: &'static str) {
    counter!(LEGACY_ATTEMPTS, "scheme" => scheme).increment(1);
}

/// Observes a settled verdict that ends a delivery.
pub fn observe_verdict(verdict: Verdict, owed_for: Duration) {
    match verdict {
        Verdict::Acknowledge => {
            counter!(DELIVERIES, "result" => DELIVERED).increment(1);
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

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

    use super::*;

    fn recorded(record: impl FnOnce()) -> PrometheusHandle {
        let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, record);
        recorder.handle()
    }

    fn series(handle: &PrometheusHandle) -> Vec<String> {
        let text = handle.render();
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn every_counter_and_gauge_is_there_at_zero_from_the_start() {
        let types = TaskTypes::new(["negotiate".to_owned()]);
        let found = series(&recorded(|| publish(&types)));
        for metric in ALL.iter().filter(|metric| metric.kind != Kind::Histogram) {
            for labels in metric.series(&types) {
                let pairs: Vec<String> =
                    labels.iter().map(|label| format!("{}=\"{}\"", label.key(), label.value())).collect();
                let braced =
                    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) };
                let value = u8::from(metric.name == BUILD_INFO);
                let line = format!("{}{braced} {value}", metric.name);
                assert!(found.contains(&line), "{line}");
            }
        }
    }

    #[test]
    fn every_name_says_its_type_and_unit_and_no_two_are_the_same() {
        for (n, metric) in ALL.iter().enumerate() {
            assert!(ALL[..n].iter().all(|other| other.name != metric.name), "{}", metric.name);
            assert!(metric.name.starts_with("taskbell_") && metric.help().ends_with('.'), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.kind != Kind::Histogram || metric.name.ends_with("_seconds"), "{}", metric.name);
        }
    }

    #[test]
    fn what_the_database_knew_is_zero_once_it_is_forgotten_and_nothing_else_is() {
        let types = TaskTypes::new([]);
        let found = series(&recorded(|| {
            publish(&types);
            for metric in ALL.iter().filter(|metric| matches!(metric.kind, Kind::Gauge | Kind::Shared)) {
                for labels in metric.series(&types) {
                    gauge!(metric.name, labels).set(7.0);
                }
            }
            forget_shared(&types);
        }));
        let sevens: Vec<&String> = found.iter().filter(|line| line.ends_with(" 7")).collect();
        assert!(
            matches!(sevens.as_slice(), [a, b] if a.starts_with(LISTENER_UP) != b.starts_with(LISTENER_UP)),
            "{sevens:?}"
        );
    }

    #[test]
    fn a_type_that_is_expected_has_its_buckets_before_its_first_task_ends() {
        let types = TaskTypes::new([]);
        let found = series(&recorded(|| expect(&types, "create_media_buy")));
        let empty =
            "taskbell_task_duration_seconds_count{task_type=\"create_media_buy\",outcome=\"completed\"} 0";
        assert!(found.iter().any(|line| line == empty), "{found:?}");
    }

    #[test]
    fn types_nobody_configured_share_one_label() {
        let types = TaskTypes::new(["negotiate".to_owned()]);
        assert_eq!(types.label("negotiate"), "negotiate");
        assert_eq!(types.label("create_media_buy"), "create_media_buy");
        for stranger in ["", "Create_Media_Buy", "other", "a\"} 1\n"] {
            assert_eq!(types.label(stranger), "other");
        }
        assert_eq!(types.labels().count(), task_types().count() + 2);
    }
}
