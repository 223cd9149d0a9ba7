//! What an outcome means for its row: a pure function, every case in a table.
//!
//! The schedule spends attempts wisely over the horizon: quickly at first, because most faults
//! pass in seconds, then ever more slowly, because what is left is waiting for a person.

use std::time::Duration;

use crate::outbox::{Source, Verdict};
use crate::webhook::Outcome;

/// When to try again.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// The delay after the first, second, … failed attempt; the last one repeats.
    pub schedule: Vec<Duration>,
    /// How far a delay may move, as a share of it: 0.2 is up to a fifth either way.
    pub jitter: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let schedule = [5, 30, 120, 300, 900, 1800, 3600, 7200, 10_800].map(Duration::from_secs).to_vec();
        Self { schedule, jitter: 0.2 }
    }
}

/// The attempt that is judged.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Whose rules count.
    pub source: Source,
    /// Its number, from 1.
    pub attempt: u32,
    /// Since the first attempt began.
    pub since_first: Duration,
    /// A number in `0.0..1.0`, drawn anew for each attempt.
    pub chance: f64,
}

impl RetryPolicy {
    /// The verdict on an outcome; [`Outcome::reason`] says why.
    ///
    /// The horizon is not looked at here: a release that would come due after it expires the
    /// row, by the database's clock.
    #[must_use]
    pub fn judge(&self, outcome: &Outcome, facts: Facts) -> Verdict {
        match facts.source {
            Source::Native => self.judge_native(outcome, facts),
            Source::Sealed => judge_sealed(outcome, facts),
        }
    }

    fn judge_native(&self, outcome: &Outcome, facts: Facts) -> Verdict {
        match outcome {
            Outcome::Answered { status, retry_after, signature_error } => match status {
                200..=299 => Verdict::Acknowledge,
                408 | 425 | 429 | 500..=599 => self.asked(facts, *retry_after),
                401 if signature_error.is_some() => Verdict::DeadLetter,
                401 | 403 | 404 => self.release(facts, SLOWLY),
                // 409 and 410, every redirect and other client errors, and what is no status.
                _ => Verdict::DeadLetter,
            },
            Outcome::AddressRefused | Outcome::Unsendable(_) => Verdict::DeadLetter,
            Outcome::Superseded => Verdict::Supersede,
            // One poisoned answer must not kill a delivery; a name that stays bad for a
            // quarter of an hour is meant so.
            Outcome::AnswerRefused if facts.since_first >= POISON_PASSES => Verdict::DeadLetter,
            Outcome::AnswerRefused | Outcome::Failed(_) => self.release(facts, Duration::ZERO),
            Outcome::OwnFault(_) => Verdict::Unclaim { after: OWN_FAULT_DELAY },
        }
    }

    fn asked(&self, facts: Facts, retry_after: Option<Duration>) -> Verdict {
        match retry_after {
            Some(asked) => Verdict::Release {
                after: asked.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER).mul_f64(1.0 + 0.1 * facts.chance),
            },
            None => self.release(facts, Duration::ZERO),
        }
    }

    fn release(&self, facts: Facts, at_least: Duration) -> Verdict {
        let step = usize::try_from(facts.attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        let delay = self.schedule.get(step).or(self.schedule.last()).copied().unwrap_or(FALLBACK);
        let jitter = 1.0 + self.jitter * (2.0 * facts.chance - 1.0);
        Verdict::Release { after: delay.max(at_least).mul_f64(jitter) }
    }
}

/// The AdCP Python SDK's verdicts and delays, for rows that its own worker may settle too.
fn judge_sealed(outcome: &Outcome, facts: Facts) -> Verdict {
    let exponent = facts.attempt.saturating_sub(1).min(30);
    let delay = SDK_BASE.saturating_mul(1 << exponent).min(SDK_MAX);
    let release = Verdict::Release { after: delay.mul_f64(0.5 + facts.chance / 2.0) };
    match outcome {
        Outcome::Answered { status: 200..=299, .. } => Verdict::Acknowledge,
        Outcome::Answered { status: 408 | 425 | 429 | 500.., .. } | Outcome::Failed(_) => release,
        Outcome::Answered { .. }
        | Outcome::AddressRefused
        | Outcome::AnswerRefused
        | Outcome::Unsendable(_) => Verdict::DeadLetter,
        // Nothing that the SDK knows: ours to repair, and the row comes back to whoever can send it.
        Outcome::OwnFault(_) => Verdict::Release { after: OWN_FAULT_DELAY },
        Outcome::Superseded => Verdict::Supersede,
    }
}

const SDK_BASE: Duration = Duration::from_secs(1);
const SDK_MAX: Duration = Duration::from_secs(30);
/// Gateways are redeployed and credentials fixed within hours, not seconds.
const SLOWLY: Duration = Duration::from_secs(300);
/// Long enough for a poisoned cache to expire.
const POISON_PASSES: Duration = Duration::from_secs(900);
/// Ours to repair; nothing is gained by looking more often.
const OWN_FAULT_DELAY: Duration = Duration::from_secs(30);
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);
/// A receiver may slow us down, not park us for the whole horizon.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Only for an empty schedule, which the configuration refuses.
const FALLBACK: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::{OwnFault, SignatureError};

    fn answered(status: u16) -> Outcome {
        Outcome::Answered { status, retry_after: None, signature_error: None }
    }

    fn first(chance: f64) -> Facts {
        Facts { source: Source::Native, attempt: 1, since_first: Duration::ZERO, chance }
    }

    #[test]
    fn every_status_has_its_verdict() {
        let policy = RetryPolicy { jitter: 0.0, ..RetryPolicy::default() };
        let soon = Verdict::Release { after: Duration::from_secs(5) };
        let slow = Verdict::Release { after: Duration::from_secs(300) };
        for (statuses, verdict) in [
            (&[200u16, 202, 204, 299][..], Verdict::Acknowledge),
            (&[408, 425, 429, 500, 501, 502, 503, 504, 599], soon),
            (&[401, 403, 404], slow),
            (&[301, 302, 304, 307, 308, 400, 402, 405, 409, 410, 413, 422, 451], Verdict::DeadLetter),
            (&[0, 199, 600, 999], Verdict::DeadLetter),
        ] {
            for status in statuses {
                assert_eq!(policy.judge(&answered(*status), first(0.5)), verdict, "{status}");
            }
        }
        let signature_error = Some(SignatureError::KeyUnknown);
        let refused = |status| Outcome::Answered { status, retry_after: None, signature_error };
        assert_eq!(policy.judge(&refused(401), first(0.5)), Verdict::DeadLetter);
        assert_eq!(policy.judge(&refused(503), first(0.5)), soon);
    }

    #[test]
    fn what_is_our_own_fault_burns_no_attempt() {
        let verdict = RetryPolicy::default().judge(&Outcome::OwnFault(OwnFault::NoSigningKey), first(0.5));
        assert!(matches!(verdict, Verdict::Unclaim { .. }));
    }

    #[test]
    fn a_refused_answer_is_forgiven_for_a_quarter_of_an_hour() {
        let policy = RetryPolicy::default();
        let after = |seconds| Facts { since_first: Duration::from_secs(seconds), ..first(0.5) };
        assert!(matches!(policy.judge(&Outcome::AnswerRefused, after(899)), Verdict::Release { .. }));
        assert_eq!(policy.judge(&Outcome::AnswerRefused, after(900)), Verdict::DeadLetter);
        assert_eq!(policy.judge(&Outcome::AddressRefused, first(0.5)), Verdict::DeadLetter);
    }

    #[test]
    fn a_receiver_may_slow_us_down_within_bounds() {
        let policy = RetryPolicy::default();
        for (asked, given) in [(0, 1), (7, 7), (86_400, 3600)] {
            let outcome = Outcome::Answered {
                status: 503,
                retry_after: Some(Duration::from_secs(asked)),
                signature_error: None,
            };
            assert_eq!(
                policy.judge(&outcome, first(0.0)),
                Verdict::Release { after: Duration::from_secs(given) }
            );
        }
    }

    #[test]
    fn some_fifteen_attempts_fit_a_day_and_jitter_stays_in_its_share() {
        let policy = RetryPolicy::default();
        let mut at = 0.0;
        let mut attempt = 1;
        while at < 86_400.0 {
            let facts = |chance| Facts { attempt, ..first(chance) };
            let delay = |chance| match policy.judge(&answered(503), facts(chance)) {
                Verdict::Release { after } => after.as_secs_f64(),
                other => panic!("{other:?}"),
            };
            assert!((delay(0.0) / delay(0.5) - 0.8).abs() < 1e-6);
            assert!(delay(0.999) / delay(0.5) < 1.2);
            at += delay(0.5);
            attempt += 1;
        }
        assert!((13..=18).contains(&attempt), "{attempt}");
    }

    #[test]
    fn rows_of_the_sdk_have_the_verdicts_and_delays_of_its_worker() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/sdk-verdicts.json")).unwrap();
        let sealed = |attempt, chance| Facts { source: Source::Sealed, attempt, ..first(chance) };
        let policy = RetryPolicy::default();
        for case in vectors["http"].as_array().unwrap() {
            let status = u16::try_from(case["status"].as_u64().unwrap()).unwrap();
            let settle = match policy.judge(&answered(status), sealed(1, 0.5)) {
                Verdict::Acknowledge => "ack",
                Verdict::Release { .. } => "release",
                _ => "quarantine",
            };
            assert_eq!(settle, case["settle"], "{status}");
        }
        for case in vectors["backoff"].as_array().unwrap() {
            let attempt = u32::try_from(case["attempt"].as_u64().unwrap()).unwrap();
            // Without jitter the factor is 1, which chance comes close to.
            let Verdict::Release { after } = policy.judge(&answered(503), sealed(attempt, 1.0)) else {
                panic!("{case}")
            };
            assert_eq!(Some(after.as_secs_f64()), case["delay_seconds"].as_f64(), "{case}");
        }
        assert_eq!(policy.judge(&Outcome::AnswerRefused, sealed(1, 0.0)), Verdict::DeadLetter);
    }
}
