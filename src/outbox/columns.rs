//! Settlements as arrays, one for each column.

use std::time::SystemTime;

use uuid::Uuid;

use super::{Settlement, Verdict};

/// Settlements as columns, because a batch is one statement over arrays.
#[derive(Default)]
pub(super) struct Columns {
    pub(super) rows: Vec<i64>,
    pub(super) tokens: Vec<Uuid>,
    pub(super) verdicts: Vec<&'static str>,
    pub(super) delays: Vec<f64>,
    pub(super) started_at: Vec<Option<SystemTime>>,
    pub(super) duration_ms: Vec<Option<i32>>,
    pub(super) statuses: Vec<Option<i32>>,
    pub(super) reasons: Vec<Option<&'static str>>,
    pub(super) body_bytes: Vec<Option<i32>>,
}

impl Columns {
    pub(super) fn of<'a>(settlements: impl IntoIterator<Item = &'a Settlement>) -> Self {
        let mut columns = Self::default();
        for settlement in settlements {
            let attempt = settlement.attempt.as_ref();
            columns.rows.push(settlement.row.id);
            columns.tokens.push(settlement.lease.0);
            columns.verdicts.push(match settlement.verdict {
                Verdict::Unclaim { .. } => "unclaim",
                verdict => verdict.as_str(),
            });
            columns.delays.push(match settlement.verdict {
                Verdict::Release { after } | Verdict::Unclaim { after } => after.as_secs_f64(),
                Verdict::Acknowledge | Verdict::Supersede | Verdict::DeadLetter => 0.0,
            });
            columns.started_at.push(attempt.map(|attempt| attempt.started_at));
            columns.duration_ms.push(attempt.map(|attempt| clamp(attempt.duration.as_millis())));
            columns.statuses.push(attempt.and_then(|attempt| attempt.status).map(i32::from));
            columns.reasons.push(settlement.reason.map(|reason| reason.as_str()));
            columns.body_bytes.push(attempt.map(|attempt| clamp(attempt.body_bytes)));
        }
        columns
    }
}

/// A number for a column that is narrower: at the limit it stays there.
fn clamp(n: impl TryInto<i32>) -> i32 {
    n.try_into().unwrap_or(i32::MAX)
}
