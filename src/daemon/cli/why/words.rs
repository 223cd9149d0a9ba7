//! A verdict in plain words: what happened, and what to do about it.

use std::time::Duration;

use super::verdict::{Moment, Registered, Verdict};
use crate::webhook::FailureReason;

/// What a person is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words {
    /// One word for scripts; part of the command line's contract.
    pub verdict: &'static str,
    /// What happened.
    pub says: String,
    /// What to do; `None` where there is nothing to do.
    pub todo: Option<String>,
}

impl Verdict {
    /// The verdict in words.
    pub(super) fn words(&self) -> Words {
        let (verdict, says, todo) = match self {
            Self::Delivered { at, attempts, status } => (
                "delivered",
                format!("delivered at {}, by attempt {attempts}{}", short(at), answered(*status)),
                Some("if the buyer misses it, look for the idempotency key in the receiver's log".to_owned()),
            ),
            Self::Cancelled { at } => {
                ("cancelled", format!("cancelled by an operator at {}", short(at)), None)
            }
            Self::InFlight { attempt, lease } => (
                "in_flight",
                format!("attempt {attempt} is being made now; its lease runs until {}", when(lease)),
                Some("look again in a minute".to_owned()),
            ),
            Self::Due { since, awake } => (
                "due",
                format!(
                    "due since {}, and a daemon is {}",
                    when(since),
                    if *awake { "awake and draining" } else { "connected and asleep" }
                ),
                Some(
                    "it is taken in moments; if not, its destination or the daemon is busy \
                     (`taskbell lanes list`, worker.per_lane, worker.concurrency) or the daemon's log says why"
                        .to_owned(),
                ),
            ),
            Self::Waiting { attempt, at, reason, status, horizon } => (
                "waiting",
                format!("waiting for attempt {attempt} at {}{}", when(at), because(reason.as_deref(), *status)),
                Some(match horizon {
                    Some(horizon) => {
                        format!("nothing: it is tried again until {}", when(horizon))
                    }
                    None => "nothing: it is tried again".to_owned(),
                }),
            ),
            Self::LaneClosed { lane, until, failures, reason } => (
                "lane_closed",
                if until.seconds > 0.0 {
                    format!(
                        "{lane} failed {failures} times and is left alone until {}{}",
                        when(until),
                        because(Some(reason), None)
                    )
                } else {
                    format!(
                        "{lane} was left alone until {}; one webhook probes it next{}",
                        when(until),
                        because(Some(reason), None)
                    )
                },
                Some(format!(
                    "nothing, or once it is back: taskbell lanes open {lane}, which makes due what waits there"
                )),
            ),
            Self::LaneProbing { lane, reason } => (
                "lane_probing",
                format!(
                    "{lane} had failed, and another webhook probes it now{}",
                    because(Some(reason), None)
                ),
                Some("look again in a minute".to_owned()),
            ),
            Self::NoDaemon { due, sealed } => (
                "no_daemon",
                match due {
                    Some(due) if due.seconds > 0.0 => {
                        format!("due at {}, but no daemon is connected to this database", when(due))
                    }
                    Some(due) => {
                        format!("due since {}, but no daemon is connected to this database", when(due))
                    }
                    None => "owed, but no daemon is connected to this database".to_owned(),
                },
                Some(if *sealed {
                    "start one (`taskbell run`), or the SDK's own worker; `taskbell check` says what is missing"
                        .to_owned()
                } else {
                    "start one (`taskbell run`); `taskbell check` says what is missing".to_owned()
                }),
            ),
            Self::NotServed { state } => (
                "not_served",
                format!("{state} in the AdCP Python SDK's outbox, which the configuration read here does not serve"),
                Some("run the SDK's own worker, or name the table and its key in [sources.sealed]".to_owned()),
            ),
            Self::DeadLetter { id, expired, reason, status, past_horizon, sealed } => (
                "dead_letter",
                format!(
                    "given up{}{}",
                    if *expired { ": its horizon passed" } else { "" },
                    because(Some(reason), *status)
                ),
                Some(match (sealed, past_horizon) {
                    (true, _) => "the SDK's rows are not sent again: tell the buyer to poll the task".to_owned(),
                    (false, false) => format!(
                        "once the cause is gone: taskbell deliveries retry {id}; or for good: taskbell deliveries \
                         cancel {id}"
                    ),
                    (false, true) => format!(
                        "its horizon has passed and the buyer may take it for a new event: taskbell deliveries \
                         retry {id} --past-horizon; or for good: taskbell deliveries cancel {id}"
                    ),
                }),
            ),
            Self::Open { state, since, registered } => {
                let since = since.as_deref().map(|at| format!(" since {}", short(at))).unwrap_or_default();
                let open = format!("the task is still {state}{since}");
                match registered {
                    Registered::Here => (
                        "open",
                        format!("{open}; its webhook is owed when it ends"),
                        Some("somebody has to decide: `taskbell tasks complete` or `fail`".to_owned()),
                    ),
                    Registered::WithTheSdk => (
                        "open_with_sdk",
                        format!(
                            "{open}; the AdCP Python SDK keeps its registration (sealed) and owes the webhook \
                             when the SDK ends the task"
                        ),
                        Some("end it through the SDK: an UPDATE by others rings nobody".to_owned()),
                    ),
                    Registered::Nowhere => (
                        "open_unregistered",
                        format!("{open}, and nobody registered a webhook: nothing will be sent"),
                        Some(REGISTER.to_owned()),
                    ),
                }
            }
            Self::EndedUnregistered { state, at } => (
                "unregistered",
                format!("{state} at {}, and nobody had registered a webhook: none was owed", short(at)),
                Some(REGISTER.to_owned()),
            ),
            Self::EndedAtOnce { state } => (
                "ended_at_once",
                format!("{state} from its first row on: the first answer carried the result, and none is owed"),
                None,
            ),
            Self::EndedBeforeRegistration { ended_at, registered_at } => (
                "ended_before_registration",
                format!(
                    "ended at {} without seeing the registration of {}: none was owed",
                    short(ended_at),
                    short(registered_at)
                ),
                Some("register in the transaction that inserts the task; tell this buyer to poll it".to_owned()),
            ),
            Self::EndedBesideSdk { state } => (
                "ended_beside_sdk",
                format!(
                    "{state}, but not by the AdCP Python SDK, which had the registration and alone can read it: \
                     none was owed"
                ),
                Some("end such tasks through the SDK; tell this buyer to poll it".to_owned()),
            ),
            Self::EndedUnrecorded { state } => (
                "unrecorded",
                format!(
                    "{state}, and the journal does not know of it: it ended before the table was watched, while \
                     triggers were off, or longer ago than retention.keep"
                ),
                Some("`taskbell check` says whether the triggers are in place".to_owned()),
            ),
            Self::Unwatched { state } => (
                "unwatched",
                format!("last seen {state}; its table does not carry our triggers any more, so nothing is owed"),
                Some("taskbell watch add TABLE".to_owned()),
            ),
            Self::Gone { state } => (
                "gone",
                format!("its row is gone from the task table; it was {state}, and nothing will be sent"),
                None,
            ),
        };
        Words { verdict, says, todo }
    }
}

const REGISTER: &str = "call taskbell.register_webhook in the transaction that inserts the task";

fn answered(status: Option<i64>) -> String {
    status.map(|status| format!(", answered with {status}")).unwrap_or_default()
}

/// `, because …`, by the closed words of reasons; texts of the SDK as they are.
fn because(reason: Option<&str>, status: Option<i64>) -> String {
    let Some(reason) = reason.filter(|reason| !reason.is_empty()) else {
        return answered(status);
    };
    format!(", because of {reason}{}: {}", answered(status), explain(reason))
}

/// What a stored reason means.
pub(super) fn explain(reason: &str) -> &str {
    reason.parse::<FailureReason>().map_or("as the SDK put it.", FailureReason::explain)
}

/// A time and how far away it is.
fn when(moment: &Moment) -> String {
    format!("{} ({})", short(&moment.at), away(moment.seconds))
}

fn away(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.abs().floor()).unwrap_or_default();
    match (whole.is_zero(), seconds > 0.0) {
        (true, _) => "now".to_owned(),
        (false, true) => format!("in {}", humantime::format_duration(whole)),
        (false, false) => format!("{} ago", humantime::format_duration(whole)),
    }
}

/// The database's `2026-04-18T14:00:00.123456+00:00` to the second; sessions of ours are in UTC.
pub(super) fn short(at: &str) -> String {
    match at.get(..19) {
        Some(second) if at.as_bytes().get(10) == Some(&b'T') => format!("{second}Z"),
        _ => at.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short_and_say_how_far_away_they_are() {
        let at = "2026-04-18T14:00:00.123456+00:00".to_owned();
        for (seconds, expected) in [
            (90.7, "2026-04-18T14:00:00Z (in 1m 30s)"),
            (-3600.0, "2026-04-18T14:00:00Z (1h ago)"),
            (0.4, "2026-04-18T14:00:00Z (now)"),
            (f64::INFINITY, "2026-04-18T14:00:00Z (now)"),
        ] {
            assert_eq!(when(&Moment { at: at.clone(), seconds }), expected);
        }
        assert_eq!(short("soon"), "soon");
    }

    #[test]
    fn a_dead_letter_says_why_and_how_to_send_it_again() {
        let dead = |past_horizon, sealed, reason: &str| {
            let reason = reason.to_owned();
            Verdict::DeadLetter { id: 7, expired: false, reason, status: Some(410), past_horizon, sealed }
                .words()
        };
        let gone = dead(false, false, "gone");
        assert_eq!(
            gone.says,
            "given up, because of gone, answered with 410: The receiver answered 410: the endpoint is gone for good."
        );
        assert!(gone.todo.unwrap().contains("deliveries retry 7;"));
        assert!(dead(true, false, "gone").todo.unwrap().contains("retry 7 --past-horizon"));
        assert!(!dead(true, true, "gone").todo.unwrap().contains("retry"));
        assert!(dead(false, true, "decryption failed").says.contains("as the SDK put it"));
    }
}
