//! The AdCP Python SDK's outbox: rows that it encrypted, delivered by its own rules.
//!
//! Predicates, leases and settles are the SDK's to the letter, so that its `run_worker()` and we
//! may work on one table at the same time: claims are disjoint, and every settle matches the
//! lease token. No column that is authenticated with the body is ever written, and the table is
//! never altered.

mod prepare;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_postgres::Pool;
use serde_json::Value;
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    Claim, Claimed, Columns, Entered, Lane, LeaseToken, Loan, Look, Outbox, OutboxError, Room, RowId,
    SettledRows, count,
};
use super::{Settlement, Source, Transition, Verdict, patiently};
use crate::task::{SdkKeys, UrlSchemes};
use crate::webhook::FailureReason;

use prepare::Preparer;

/// The SDK's `adcp_task_webhook_outbox`, under whatever name.
pub struct SealedOutbox {
    pool: Pool,
    lease: Duration,
    patience: Duration,
    preparer: Preparer,
    lanes: Mutex<Lanes>,
    sql: Statements,
}

/// The lanes that claims have found, by how their URLs begin, scheme and authority: the table has no column for them.
type Lanes = serde_json::Map<String, Value>;

/// How a [`SealedOutbox`] finds and opens its rows.
#[derive(Debug, Clone)]
pub struct SealedOptions {
    /// The table: `^[a-z_][a-z0-9_]{0,44}$`, found by `search_path`, or with a schema before it.
    pub table: String,
    /// How long a claim is good for; the SDK wants at least 2 s.
    pub lease: Duration,
    /// How long an answer of the database is waited for; longer than its own limit on statements.
    pub patience: Duration,
    /// Which URLs may be called.
    pub schemes: UrlSchemes,
    /// The application keys of the SDK's processes.
    pub keys: Arc<SdkKeys>,
}

struct Statements {
    claim: String,
    expire: String,
    settle: String,
    next_due: String,
}

impl SealedOutbox {
    /// An outbox on a pool of connections.
    #[must_use]
    pub fn new(pool: Pool, options: SealedOptions) -> Self {
        let SealedOptions { table, lease, patience, schemes, keys } = options;
        let named = |sql: &str| sql.replace(TABLE, &table);
        let sql = Statements {
            claim: named(CLAIM),
            expire: named(EXPIRE),
            settle: named(SETTLE),
            next_due: named(NEXT_DUE),
        };
        Self { pool, lease, patience, preparer: Preparer { schemes, keys }, lanes: Mutex::default(), sql }
    }

    fn claim_of(&self, row: &Row, token: Uuid, until: Instant) -> Claim {
        let seconds = |column: usize| Duration::from_secs_f64(row.get::<_, f64>(column).max(0.0));
        Claim {
            row: RowId::sealed(row.get(0)),
            lease: LeaseToken(token),
            until,
            task_id: row.get(1),
            task_type: row.get(3),
            lane: Lane(row.get(12)),
            attempt: u32::try_from(row.get::<_, i32>(11)).unwrap_or(1),
            since_first: seconds(14),
            horizon: seconds(15),
            owed_for: seconds(16),
            is_new: row.get::<_, i32>(11) == 1,
            prepared: self.preparer.prepare(row),
        }
    }

    /// Remembers how the URLs of a lane begin.
    fn learn(&self, rows: &[Row]) {
        let mut lanes = self.known_lanes();
        for row in rows {
            let (lane, begins): (&str, &str) = (row.get(12), row.get(13));
            if begins.len() > MAX_BEGINNING || lanes.contains_key(begins) {
                continue;
            }
            if lanes.len() >= MAX_LANES {
                lanes.clear();
            }
            lanes.insert(begins.to_owned(), lane.into());
        }
    }

    fn known_lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outbox for SealedOutbox {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        if room.rows == 0 {
            return Ok(Claimed::default());
        }
        let client = Loan::of(&self.pool).await?;
        let (token, until) = (Uuid::new_v4(), Instant::now() + self.lease);
        let (lanes, counts, held) = room.busy();
        let bytes_per_lane = count(room.bytes_per_lane);
        let (rows, per_lane, bytes) = (count(room.rows), count(room.per_lane), count(room.bytes));
        let (text, lease) = (token.simple().to_string(), self.lease.as_secs_f64());
        let known = Value::Object(self.known_lanes().clone());
        let parameters: [&(dyn ToSql + Sync); 10] =
            [&rows, &per_lane, &lanes, &counts, &text, &lease, &bytes, &bytes_per_lane, &held, &known];
        let (expired, rows) = patiently(self.patience, async {
            let (expire, claim) = tokio::try_join!(
                client.prepare_cached(&self.sql.expire),
                client.prepare_cached(&self.sql.claim)
            )?;
            let expires = matches!(room.look, Look::Whole | Look::Wide);
            // In this order on the wire, as the SDK's: expire, then claim. Each commits by itself.
            Ok::<_, OutboxError>(tokio::join!(
                async { if expires { client.execute(&expire, &[&EXPIRE_ROWS]).await } else { Ok(0) } },
                client.query(&claim, &parameters),
            ))
        })
        .await??;
        client.give_back();
        let rows = rows?;
        self.learn(&rows);
        let claims: Vec<Claim> = rows.iter().map(|row| self.claim_of(row, token, until)).collect();
        Ok(Claimed {
            more: room.is_used_up_by(&claims),
            claims,
            fault: expired.err().map(OutboxError::from),
            ..Claimed::default()
        })
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<SettledRows, OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let columns = Columns::of(settlements);
        let last_errors: Vec<Option<String>> = settlements.iter().map(last_error_of).collect();
        let answer = patiently(self.patience, async {
            let statement = client.prepare_cached(&self.sql.settle).await?;
            client
                .query(
                    &statement,
                    &[
                        &columns.rows,
                        &columns.tokens,
                        &columns.verdicts,
                        &columns.delays,
                        &columns.statuses,
                        &last_errors,
                        &columns.started_at,
                        &columns.duration_ms,
                        &columns.reasons,
                        &columns.body_bytes,
                    ],
                )
                .await
        })
        .await;
        if answer.is_ok() {
            client.give_back();
        }
        let mut settled = SettledRows::default();
        match answer.and_then(|rows| rows.map_err(OutboxError::from)) {
            Ok(rows) => {
                let written: HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
                let expired = rows.iter().filter(|row| row.get(1)).map(|row| RowId::sealed(row.get(0)));
                settled.expired.extend(expired);
                let ours = settlements.iter().map(|settlement| settlement.row);
                settled
                    .lost
                    .extend(ours.filter(|row| row.source == Source::Sealed && !written.contains(&row.id)));
            }
            Err(error) => settled.unwritten(&settlements.iter().collect::<Vec<_>>(), error),
        }
        Ok(settled)
    }

    async fn before(&self, changes: &[Transition]) -> Result<Vec<Option<Entered>>, OutboxError> {
        // The SDK's rows say nothing of the states that led to them.
        Ok(vec![None; changes.len()])
    }

    async fn next_due(&self) -> Result<Option<Duration>, OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let row = patiently(self.patience, async {
            let statement = client.prepare_cached(&self.sql.next_due).await?;
            client.query_opt(&statement, &[]).await
        })
        .await?;
        client.give_back();
        Ok(row?.map(|row| Duration::from_secs_f64(row.get::<_, f64>(0).max(0.0))))
    }

    async fn expire(&self) -> Result<u64, OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let expired = patiently(self.patience, async {
            let statement = client.prepare_cached(&self.sql.expire).await?;
            client.execute(&statement, &[&EXPIRE_ROWS]).await
        })
        .await?;
        client.give_back();
        Ok(expired?)
    }

    async fn ring(&self) -> Result<(), OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let rung = patiently(self.patience, client.batch_execute(super::RING)).await?;
        client.give_back();
        Ok(rung?)
    }
}

fn last_error_of(settlement: &Settlement) -> Option<String> {
    let status = settlement.attempt.as_ref().and_then(|attempt| attempt.status);
    last_error(settlement.verdict, status, settlement.reason)
}

/// What the SDK's worker would have written: a closed set of texts.
fn last_error(verdict: Verdict, status: Option<u16>, reason: Option<FailureReason>) -> Option<String> {
    use FailureReason as Reason;
    let invalid = |kind| Some(format!("permanent delivery validation failure: {kind}"));
    let failed = |kind| Some(format!("{kind}: delivery failed"));
    match (verdict, status, reason) {
        (Verdict::Acknowledge | Verdict::Supersede, _, _) => None,
        (Verdict::DeadLetter, Some(status), _) => Some(format!("permanent HTTP {status}")),
        (Verdict::DeadLetter, None, Some(Reason::Unopenable)) => Some(NOT_BOUND.to_owned()),
        (Verdict::DeadLetter, None, Some(Reason::AddressRefused | Reason::AnswerRefused)) => {
            invalid("SSRFValidationError")
        }
        (Verdict::DeadLetter, None, _) => invalid("ValueError"),
        (Verdict::Release { .. } | Verdict::Unclaim { .. }, Some(status), _) => {
            Some(format!("HTTP {status}"))
        }
        (Verdict::Release { .. } | Verdict::Unclaim { .. }, None, reason) => match reason {
            Some(Reason::Dns) => failed("SSRFValidationError"),
            Some(Reason::Connect | Reason::Tls) => failed("ConnectError"),
            Some(Reason::Timeout) => failed("ReadTimeout"),
            Some(Reason::Reset) => failed("ReadError"),
            Some(Reason::ResponseBroken) => failed("RemoteProtocolError"),
            _ => failed("RuntimeError"),
        },
    }
}

/// The name in the statements, replaced where another one is configured.
const TABLE: &str = "adcp_task_webhook_outbox";
const CLAIM: &str = include_str!("claim.sql");
const EXPIRE: &str = include_str!("expire.sql");
const SETTLE: &str = include_str!("settle.sql");
const NEXT_DUE: &str = include_str!("next_due.sql");
/// Lanes that are remembered, and how long the beginning of a URL may be for that.
const MAX_LANES: usize = 1_000;
const MAX_BEGINNING: usize = 300;
/// As the SDK.
const EXPIRE_ROWS: i64 = 1000;
/// The SDK's words for a row that fails its authenticated binding.
const NOT_BOUND: &str =
    "stored webhook envelope failed authenticated binding verification; row quarantined without delivery";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_for_a_status_is_what_the_sdk_writes() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/sdk-verdicts.json")).unwrap();
        let cases = vectors["http"].as_array().unwrap();
        assert!(cases.len() > 20);
        for case in cases {
            let verdict = match case["settle"].as_str().unwrap() {
                "ack" => Verdict::Acknowledge,
                "release" => Verdict::Release { after: Duration::ZERO },
                _ => Verdict::DeadLetter,
            };
            let status = u16::try_from(case["status"].as_u64().unwrap()).unwrap();
            let reason = FailureReason::of_status(status);
            assert_eq!(
                last_error(verdict, Some(status), reason).as_deref(),
                case["last_error"].as_str(),
                "{case}"
            );
        }
    }
}
