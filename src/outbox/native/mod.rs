//! Our own outbox: rows that the triggers wrote, rendered from what they hold.
//!
//! A batch costs two statements to claim and two to settle, each pair pipelined on one connection; a bell
//! costs one to claim, or two where more than one row is due at its place. A claim changes no column that
//! an index has, so rows in flight stand where they stood when they were due: what a daemon left behind
//! that died is found there first.

mod claim;
mod prepare;
mod seal;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use deadpool_postgres::{Object, Pool};
use tokio_postgres::Row;

use super::{
    Claimed, Columns, Entered, Loan, Outbox, OutboxError, Room, RowId, SettledRows, Settlement, Transition,
    Verdict, patiently,
};
use crate::task::{SealingKeys, UrlSchemes};

pub use seal::{Resealed, Which, seal_registrations};

use claim::Memory;
use prepare::Preparer;

/// `taskbell.outbox`.
pub struct NativeOutbox {
    pool: Pool,
    lease: Duration,
    horizon: Duration,
    circuits: CircuitPolicy,
    patience: Duration,
    preparer: Preparer,
    memory: Memory,
}

/// When a lane that fails is left alone, and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CircuitPolicy {
    /// Failures in a row, of one account at one destination.
    pub failures: u32,
    /// The first pause; each further one is twice as long.
    pub pause: Duration,
    /// The longest pause.
    pub max_pause: Duration,
}

impl Default for CircuitPolicy {
    fn default() -> Self {
        Self { failures: 5, pause: Duration::from_secs(5), max_pause: Duration::from_secs(300) }
    }
}

/// How a [`NativeOutbox`] treats its rows.
#[derive(Debug, Clone)]
pub struct NativeOptions {
    /// How long a claim is good for.
    pub lease: Duration,
    /// A row is given up so long after its first attempt.
    pub horizon: Duration,
    /// How long an answer of the database is waited for; longer than its own limit on statements.
    pub patience: Duration,
    /// Which URLs may be called.
    pub schemes: UrlSchemes,
    /// Open sealed registrations.
    pub sealing: Arc<SealingKeys>,
    /// When a lane is left alone.
    pub circuits: CircuitPolicy,
}

impl NativeOutbox {
    /// An outbox on a pool of connections.
    #[must_use]
    pub fn new(pool: Pool, options: NativeOptions) -> Self {
        let NativeOptions { lease, horizon, patience, schemes, sealing, circuits } = options;
        let preparer = Preparer { schemes, sealing };
        Self { pool, lease, horizon, circuits, patience, preparer, memory: Memory::default() }
    }

    /// The rows written, and whether a circuit has healed by that.
    async fn acknowledge(
        &self,
        client: &Object,
        settled: &[&Settlement],
    ) -> Result<(Vec<RowId>, bool), OutboxError> {
        if settled.is_empty() {
            return Ok((Vec::new(), false));
        }
        let columns = Columns::of(settled.iter().copied());
        let statement = client.prepare_cached(ACKNOWLEDGE).await?;
        let rows = client
            .query(
                &statement,
                &[
                    &columns.rows,
                    &columns.tokens,
                    &columns.started_at,
                    &columns.duration_ms,
                    &columns.statuses,
                    &columns.body_bytes,
                    &columns.verdicts,
                ],
            )
            .await?;
        let healed = rows.first().is_some_and(|row| row.get(1));
        Ok((rows.iter().map(|row| RowId::native(row.get(0))).collect(), healed))
    }

    async fn release(
        &self,
        client: &Object,
        settled: &[&Settlement],
    ) -> Result<Vec<(RowId, bool)>, OutboxError> {
        if settled.is_empty() {
            return Ok(Vec::new());
        }
        let columns = Columns::of(settled.iter().copied());
        let statement = client.prepare_cached(RELEASE).await?;
        let rows = client
            .query(
                &statement,
                &[
                    &columns.rows,
                    &columns.tokens,
                    &columns.verdicts,
                    &columns.delays,
                    &columns.started_at,
                    &columns.duration_ms,
                    &columns.statuses,
                    &columns.reasons,
                    &columns.body_bytes,
                    &i32::try_from(self.circuits.failures).unwrap_or(i32::MAX),
                    &self.circuits.pause.as_secs_f64(),
                    &self.circuits.max_pause.as_secs_f64(),
                ],
            )
            .await?;
        Ok(rows.iter().map(|row| (RowId::native(row.get(0)), row.get(1))).collect())
    }
}

impl Outbox for NativeOutbox {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let claimed = patiently(self.patience, self.take(&client, room)).await??;
        client.give_back();
        Ok(claimed)
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<SettledRows, OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let (delivered, others): (Vec<&Settlement>, Vec<&Settlement>) = settlements
            .iter()
            .partition(|settlement| matches!(settlement.verdict, Verdict::Acknowledge | Verdict::Supersede));
        let (acknowledged, released) = tokio::join!(
            patiently(self.patience, self.acknowledge(&client, &delivered)),
            patiently(self.patience, self.release(&client, &others)),
        );
        if acknowledged.is_ok() && released.is_ok() {
            client.give_back();
        }
        let mut settled = SettledRows::default();
        let mut written: HashSet<RowId> = HashSet::new();
        // Each commits by itself: what one of them wrote is written although the other failed.
        match acknowledged.and_then(|answer| answer) {
            Ok((rows, healed)) => {
                settled.healed = healed;
                written.extend(rows);
            }
            Err(error) => settled.unwritten(&delivered, error),
        }
        match released.and_then(|answer| answer) {
            Ok(rows) => {
                settled.expired.extend(rows.iter().filter(|(_, expired)| *expired).map(|(row, _)| *row));
                written.extend(rows.into_iter().map(|(row, _)| row));
            }
            Err(error) => settled.unwritten(&others, error),
        }
        written.extend(&settled.unwritten);
        let rows = settlements.iter().map(|settlement| settlement.row);
        settled.lost.extend(rows.filter(|row| !written.contains(row)));
        Ok(settled)
    }

    async fn before(&self, changes: &[Transition]) -> Result<Vec<Option<Entered>>, OutboxError> {
        let tables: Vec<i16> = changes.iter().map(|change| change.task.0).collect();
        let tasks: Vec<&str> = changes.iter().map(|change| change.task.1.as_str()).collect();
        let ids: Vec<i64> = changes.iter().map(|change| change.id).collect();
        let created: Vec<_> = changes.iter().map(|change| change.task_created_at).collect();
        let earliest = created.iter().copied().map(|at| at.unwrap_or(SystemTime::UNIX_EPOCH)).min();
        let client = Loan::of(&self.pool).await?;
        let rows = patiently(self.patience, async {
            let statement = client.prepare_cached(BEFORE).await?;
            client.query(&statement, &[&tables, &tasks, &ids, &created, &earliest]).await
        })
        .await?;
        client.give_back();
        let mut before: Vec<Option<Entered>> = changes.iter().map(|_| None).collect();
        for row in rows? {
            let n = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
            if let Some(before) = before.get_mut(n) {
                *before = Some(Entered { id: row.get(1), state: row.get(2), at: row.get(3) });
            }
        }
        Ok(before)
    }

    async fn next_due(&self) -> Result<Option<Duration>, OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let row = patiently(self.patience, async {
            let statement = client.prepare_cached(NEXT_DUE).await?;
            client.query_opt(&statement, &[&FIRST_ROWS]).await
        })
        .await?;
        client.give_back();
        let seconds = row?.and_then(|row| row.get::<_, Option<f64>>(0));
        Ok(seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))))
    }

    async fn expire(&self) -> Result<u64, OutboxError> {
        let client = Loan::of(&self.pool).await?;
        let expired = patiently(self.patience, async {
            let statement = client.prepare_cached(EXPIRE).await?;
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

fn transition(row: &Row) -> Transition {
    Transition {
        id: row.get(0),
        task: (row.get(1), row.get(2)),
        task_type: row.get(3),
        from: row.get(4),
        to: row.get(5),
        at: row.get(6),
        task_created_at: row.get(7),
    }
}

const BEFORE: &str = include_str!("before.sql");
const ACKNOWLEDGE: &str = include_str!("acknowledge.sql");
const RELEASE: &str = include_str!("release.sql");
const NEXT_DUE: &str = include_str!("next_due.sql");
const EXPIRE: &str = include_str!("expire.sql");
const EXPIRE_ROWS: i64 = 1000;
/// Rows of a lane that are asked for their lease, one of which runs out first.
const FIRST_ROWS: i64 = 64;
