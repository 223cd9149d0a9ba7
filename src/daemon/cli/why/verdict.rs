//! Why a webhook was not delivered, or that it was: a pure function of what is known.
//!
//! The webhook that tells of the task's end counts before one that tells of progress. Where none
//! is owed, the task, the journal and the registration together say why not.

use super::case::{Case, Daemon, Delivery, is_end};

/// The answer. Times as the database wrote them, with seconds from now beside them.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// The buyer has acknowledged it.
    Delivered { at: String, attempts: i64, status: Option<i64> },
    /// An operator gave it up.
    Cancelled { at: String },
    /// An attempt is running, unless its daemon died.
    InFlight { attempt: i64, lease: Moment },
    /// Its time has come, and a daemon is there to take it.
    Due { since: Moment, awake: bool },
    /// It waits for its next attempt.
    Waiting { attempt: i64, at: Moment, reason: Option<String>, status: Option<i64>, horizon: Option<Moment> },
    /// The destination fails, and is left alone.
    LaneClosed { lane: String, until: Moment, failures: i64, reason: String },
    /// The destination fails, and another webhook tries whether it is back.
    LaneProbing { lane: String, reason: String },
    /// It is owed, and nobody is there to send it.
    NoDaemon { due: Option<Moment>, sealed: bool },
    /// It stands in the SDK's outbox, which is none of ours by configuration.
    NotServed { state: String },
    /// Given up, and still there.
    DeadLetter {
        id: i64,
        expired: bool,
        reason: String,
        status: Option<i64>,
        past_horizon: bool,
        sealed: bool,
    },
    /// Nothing is owed before the task ends.
    Open { state: String, since: Option<String>, registered: Registered },
    /// Ended, and nobody had asked to be told.
    EndedUnregistered { state: String, at: String },
    /// Ended in the transaction of its first answer, which told the buyer already.
    EndedAtOnce { state: String },
    /// A registration is there, and the end was recorded without seeing it.
    EndedBeforeRegistration { ended_at: String, registered_at: String },
    /// The SDK had registered, and the end was not made by the SDK.
    EndedBesideSdk { state: String },
    /// Ended, and the journal does not know of it.
    EndedUnrecorded { state: String },
    /// The row of an open task is gone.
    Gone { state: String },
    /// The table does not carry our triggers any more.
    Unwatched { state: String },
}

/// A time, and how far it is from now: seconds, negative when past.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moment {
    pub at: String,
    pub seconds: f64,
}

/// Who is to ring the buyer when an open task ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Registered {
    Here,
    WithTheSdk,
    Nowhere,
}

/// The verdict on one task.
pub(super) fn verdict(case: &Case) -> Verdict {
    let of_the_end = case.deliveries.iter().rev().find(|delivery| is_end(&delivery.task_state));
    if let Some(delivery) = of_the_end {
        return on_delivery(delivery, case.daemon);
    }
    let state = case.state().unwrap_or("unknown").to_owned();
    if is_end(&state) {
        return on_ended(case, state);
    }
    let unsettled = |delivery: &&Delivery| !matches!(delivery.state.as_str(), "delivered" | "superseded");
    if let Some(delivery) = case.deliveries.iter().rev().find(unsettled) {
        return on_delivery(delivery, case.daemon);
    }
    let Some(task) = &case.task else {
        return if case.watched { Verdict::Gone { state } } else { Verdict::Unwatched { state } };
    };
    let registered = match (&case.registration, task.sdk_registered) {
        (Some(_), _) => Registered::Here,
        (None, true) => Registered::WithTheSdk,
        (None, false) => Registered::Nowhere,
    };
    let since = case.timeline.last().map(|change| change.at.clone()).or_else(|| task.created_at.clone());
    Verdict::Open { state, since, registered }
}

/// Of a task that has ended without a webhook for it.
fn on_ended(case: &Case, state: String) -> Verdict {
    if case.task.as_ref().is_some_and(|task| task.sdk_registered) {
        return Verdict::EndedBesideSdk { state };
    }
    match (case.end(), &case.registration) {
        (Some(end), Some(registration)) => Verdict::EndedBeforeRegistration {
            ended_at: end.at.clone(),
            registered_at: registration.registered_at.clone(),
        },
        (Some(end), None) if end.from.is_none() => Verdict::EndedAtOnce { state },
        (Some(end), None) => Verdict::EndedUnregistered { state, at: end.at.clone() },
        (None, _) => Verdict::EndedUnrecorded { state },
    }
}

fn on_delivery(delivery: &Delivery, daemon: Daemon) -> Verdict {
    let sealed = delivery.source == "sealed";
    let settled = delivery.settled_at.clone().unwrap_or_default();
    let next = Some(delivery.next_attempt_at.clone()).flatten().zip(delivery.next_in);
    let next = next.map(|(at, seconds)| Moment { at, seconds });
    let attempts = delivery.attempt_count.unwrap_or(0);
    match delivery.state.as_str() {
        "delivered" => Verdict::Delivered { at: settled, attempts, status: delivery.last_status },
        "cancelled" => Verdict::Cancelled { at: settled },
        "expired" | "invalid" => Verdict::DeadLetter {
            id: delivery.delivery_id,
            expired: delivery.state == "expired",
            reason: delivery.last_reason.clone().unwrap_or_default(),
            status: delivery.last_status,
            past_horizon: delivery.horizon_in.is_some_and(|seconds| seconds <= 0.0),
            sealed,
        },
        state if !delivery.served => Verdict::NotServed { state: state.to_owned() },
        // A lease that runs is somebody's, and one that ran out nobody's.
        "in_flight" if next.as_ref().is_none_or(|lease| lease.seconds > 0.0) => Verdict::InFlight {
            attempt: attempts,
            lease: next.unwrap_or(Moment { at: String::new(), seconds: 0.0 }),
        },
        _ if !daemon.listens && !daemon.awake => Verdict::NoDaemon { due: next, sealed },
        _ => on_waiting(delivery, next, daemon, attempts),
    }
}

fn on_waiting(delivery: &Delivery, next: Option<Moment>, daemon: Daemon, attempts: i64) -> Verdict {
    let lane = delivery.lane.clone().unwrap_or_default();
    if let Some(circuit) = &delivery.circuit {
        let reason = circuit.last_reason.clone();
        match (circuit.closed_until.clone().zip(circuit.opens_in), circuit.probing) {
            (_, true) => return Verdict::LaneProbing { lane, reason },
            (Some((at, seconds)), false) => {
                let until = Moment { at, seconds };
                return Verdict::LaneClosed { lane, until, failures: circuit.failures, reason };
            }
            (None, false) => {}
        }
    }
    match next {
        Some(at) if at.seconds > 0.0 => Verdict::Waiting {
            attempt: attempts + 1,
            at,
            reason: delivery.last_reason.clone(),
            status: delivery.last_status,
            horizon: delivery
                .retry_until
                .clone()
                .zip(delivery.horizon_in)
                .map(|(at, seconds)| Moment { at, seconds }),
        },
        since => {
            let since = since.unwrap_or(Moment { at: delivery.occurred_at.clone(), seconds: 0.0 });
            Verdict::Due { since, awake: daemon.awake }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const LISTENING: Daemon = Daemon { listens: true, awake: false };

    /// A task with one webhook of this kind for its end, and a daemon that listens.
    fn owed(delivery: Value) -> Case {
        let mut whole = json!({
            "source": "native", "served": true, "delivery_id": 7, "task_state": "completed",
            "lane": "https://buyer.example:443", "state": "pending", "attempt_count": 0,
        });
        for (name, value) in delivery.as_object().unwrap() {
            whole[name] = value.clone();
        }
        case(json!({ "deliveries": [whole] }))
    }

    fn case(known: Value) -> Case {
        let mut case: Case = serde_json::from_value(known).unwrap();
        case.watched = true;
        case.daemon = LISTENING;
        case
    }

    fn moment(at: &str, seconds: f64) -> Moment {
        Moment { at: at.to_owned(), seconds }
    }

    #[test]
    fn a_webhook_that_is_owed_says_what_it_waits_for() {
        for (delivery, expected) in [
            (
                json!({ "state": "delivered", "settled_at": "T", "attempt_count": 2, "last_status": 204 }),
                Verdict::Delivered { at: "T".into(), attempts: 2, status: Some(204) },
            ),
            (json!({ "state": "cancelled", "settled_at": "T" }), Verdict::Cancelled { at: "T".into() }),
            (
                json!({ "state": "in_flight", "attempt_count": 3, "next_attempt_at": "L", "next_in": 40.0 }),
                Verdict::InFlight { attempt: 3, lease: moment("L", 40.0) },
            ),
            (
                json!({ "state": "in_flight", "attempt_count": 3, "next_attempt_at": "L", "next_in": -1.0 }),
                Verdict::Due { since: moment("L", -1.0), awake: false },
            ),
            (
                json!({ "next_attempt_at": "N", "next_in": -3.5 }),
                Verdict::Due { since: moment("N", -3.5), awake: false },
            ),
            (
                json!({ "attempt_count": 2, "next_attempt_at": "N", "next_in": 90.0, "last_reason": "timeout",
                        "retry_until": "H", "horizon_in": 9000.0 }),
                Verdict::Waiting {
                    attempt: 3,
                    at: moment("N", 90.0),
                    reason: Some("timeout".into()),
                    status: None,
                    horizon: Some(moment("H", 9000.0)),
                },
            ),
            (
                json!({ "next_attempt_at": "N", "next_in": -1.0,
                        "circuit": { "closed_until": "C", "opens_in": 30.0, "failures": 5, "last_reason": "connect" } }),
                Verdict::LaneClosed {
                    lane: "https://buyer.example:443".into(),
                    until: moment("C", 30.0),
                    failures: 5,
                    reason: "connect".into(),
                },
            ),
            (
                json!({ "circuit": { "closed_until": "C", "opens_in": 30.0, "probing": true, "last_reason": "dns" } }),
                Verdict::LaneProbing { lane: "https://buyer.example:443".into(), reason: "dns".into() },
            ),
            // A circuit that counts failures, or recovers, closes nothing.
            (
                json!({ "next_attempt_at": "N", "next_in": -1.0, "circuit": { "failures": 2, "last_reason": "dns" } }),
                Verdict::Due { since: moment("N", -1.0), awake: false },
            ),
            (
                json!({ "state": "invalid", "last_reason": "gone", "last_status": 410, "horizon_in": 60.0 }),
                Verdict::DeadLetter {
                    id: 7,
                    expired: false,
                    reason: "gone".into(),
                    status: Some(410),
                    past_horizon: false,
                    sealed: false,
                },
            ),
            (
                json!({ "state": "expired", "last_reason": "dns", "horizon_in": -1.0, "source": "sealed" }),
                Verdict::DeadLetter {
                    id: 7,
                    expired: true,
                    reason: "dns".into(),
                    status: None,
                    past_horizon: true,
                    sealed: true,
                },
            ),
            (json!({ "source": "sealed", "served": false }), Verdict::NotServed { state: "pending".into() }),
        ] {
            assert_eq!(verdict(&owed(delivery.clone())), expected, "{delivery}");
        }
    }

    #[test]
    fn without_a_daemon_what_waits_says_so_and_what_is_settled_does_not() {
        let alone = |delivery| verdict(&Case { daemon: Daemon::default(), ..owed(delivery) });
        let waiting = json!({ "next_attempt_at": "N", "next_in": 9.0,
                              "circuit": { "closed_until": "C", "opens_in": 30.0, "last_reason": "dns" } });
        let due = Some(moment("N", 9.0));
        assert_eq!(alone(waiting.clone()), Verdict::NoDaemon { due, sealed: false });
        let delivered = alone(json!({ "state": "delivered", "settled_at": "T" }));
        assert!(matches!(delivered, Verdict::Delivered { .. }), "{delivered:?}");
        // One that is awake has asked for the lock, and may be between two listening sessions.
        let awake = Daemon { listens: false, awake: true };
        let seen =
            verdict(&Case { daemon: awake, ..owed(json!({ "next_attempt_at": "N", "next_in": 0.0 })) });
        assert_eq!(seen, Verdict::Due { since: moment("N", 0.0), awake: true });
    }

    #[test]
    fn a_task_that_nothing_is_owed_for_says_why() {
        let submitted = json!({ "at": "A", "from": null, "to": "submitted" });
        let completed = json!({ "at": "B", "from": "submitted", "to": "completed" });
        let registration = json!({ "scheme": "RFC 9421", "signing_scope": null, "url": "https://b.example/",
                                   "operation_id": "op", "states": [], "registered_at": "R" });
        let task = |state: &str, sdk: bool| {
            json!({ "state": state, "task_type": "create_media_buy", "account_id": "a", "created_at": "A",
                    "sdk_registered": sdk })
        };
        let open =
            |registered| Verdict::Open { state: "submitted".into(), since: Some("A".into()), registered };
        let state = || "completed".to_owned();
        for (known, expected) in [
            (
                json!({ "task": task("submitted", false), "timeline": [submitted], "registration": registration }),
                open(Registered::Here),
            ),
            (
                json!({ "task": task("submitted", true), "timeline": [submitted] }),
                open(Registered::WithTheSdk),
            ),
            (json!({ "task": task("submitted", false), "timeline": [submitted] }), open(Registered::Nowhere)),
            (
                json!({ "task": task("completed", false), "timeline": [submitted, completed] }),
                Verdict::EndedUnregistered { state: state(), at: "B".into() },
            ),
            (
                json!({ "task": task("completed", false), "timeline": [{ "at": "A", "from": null, "to": "completed" }] }),
                Verdict::EndedAtOnce { state: state() },
            ),
            (
                json!({ "task": task("completed", false), "timeline": [submitted, completed], "registration": registration }),
                Verdict::EndedBeforeRegistration { ended_at: "B".into(), registered_at: "R".into() },
            ),
            (
                json!({ "task": task("completed", true), "timeline": [submitted, completed] }),
                Verdict::EndedBesideSdk { state: state() },
            ),
            (
                json!({ "task": task("completed", false), "timeline": [submitted] }),
                Verdict::EndedUnrecorded { state: state() },
            ),
            (json!({ "timeline": [submitted] }), Verdict::Gone { state: "submitted".into() }),
            // The row is gone and the journal knows the end.
            (
                json!({ "timeline": [submitted, completed] }),
                Verdict::EndedUnregistered { state: state(), at: "B".into() },
            ),
        ] {
            assert_eq!(verdict(&case(known.clone())), expected, "{known}");
        }
        let unwatched = Case { watched: false, ..case(json!({ "timeline": [submitted] })) };
        assert_eq!(verdict(&unwatched), Verdict::Unwatched { state: "submitted".into() });
    }

    #[test]
    fn the_end_counts_before_progress_and_progress_before_nothing() {
        let progress =
            json!({ "state": "delivered", "task_state": "working", "settled_at": "P", "served": true });
        let mut of_end = progress.clone();
        of_end["task_state"] = json!("failed");
        of_end["settled_at"] = json!("E");
        let task = json!({ "state": "working", "task_type": "t", "account_id": null, "created_at": null,
                           "sdk_registered": false });
        let both = case(json!({ "deliveries": [of_end, progress] }));
        assert!(matches!(verdict(&both), Verdict::Delivered { at, .. } if at == "E"));
        let told = case(json!({ "task": task, "deliveries": [progress] }));
        assert!(matches!(verdict(&told), Verdict::Open { .. }));
        let mut dead = progress.clone();
        dead["state"] = json!("invalid");
        assert!(matches!(
            verdict(&case(json!({ "task": task, "deliveries": [dead] }))),
            Verdict::DeadLetter { .. }
        ));
    }
}
