//! Tasks that people have left open for too long: said once each, and failed where the operator
//! wants that.
//!
//! What was said is noted in `taskbell.overdue`, so that neither a restart nor a second daemon
//! says it again. Failing goes through the registry, like anybody's: the buyer is told.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use deadpool_postgres::Pool;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;

use super::config::Metrics;
use super::database::explain;
use crate::outbox::{Loan, patiently};
use crate::registry::{PostgresTaskRegistry, RegistryError, Scope, TaskRegistry};
use crate::task::TaskId;

/// Watches over open tasks.
pub(super) struct Overdue {
    /// Of sessions that wait for their commits: a buyer is told of what they write.
    pub(super) pool: Pool,
    pub(super) metrics: Metrics,
    /// How long an answer of the database is waited for.
    pub(super) patience: Duration,
    /// By task type, after how long an open task is failed; empty: never.
    pub(super) fail_after: BTreeMap<String, Duration>,
}

/// Tasks that could not be failed, and when that was tried: a seller's table may have rules of its own, or a
/// transaction that somebody forgot. Each is left alone for an hour, so that they neither hide others nor fill the log.
#[derive(Default)]
struct Refused(BTreeMap<String, Instant>);

impl Refused {
    /// Their names; a few whose hour is over are forgotten, and so may be tried again.
    fn left_alone(&mut self) -> Vec<&str> {
        let mut again = AGAIN_AT_ONCE;
        self.0.retain(|_, tried| {
            let over = again > 0 && tried.elapsed() >= LEFT_ALONE;
            again -= usize::from(over);
            !over
        });
        self.0.keys().map(String::as_str).collect()
    }

    fn add(&mut self, task: String) {
        if self.0.len() >= MAX_REFUSED {
            self.0.retain(|_, tried| tried.elapsed() < LEFT_ALONE);
        }
        if self.0.len() < MAX_REFUSED {
            self.0.insert(task, Instant::now());
        } else {
            tracing::warn!(task.id = task, "too many tasks cannot be failed: they hide others that could be");
        }
    }
}

impl Overdue {
    /// Runs until `stop` is cancelled. Without any limit it ends at once.
    pub(super) async fn run(self, stop: CancellationToken) {
        if self.metrics.sla.is_empty() && self.fail_after.is_empty() {
            return;
        }
        let mut refused = Refused::default();
        let mut beat = interval(self.metrics.refresh);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = beat.tick() => {}
            }
            let mut look = pin!(self.look(&mut refused));
            tokio::select! {
                () = &mut look => {}
                () = stop.cancelled() => {
                    // What has been noted as said is said by this look or by nobody.
                    let _ = timeout(STOP_PATIENCE, look).await;
                    return;
                }
            }
        }
    }

    async fn look(&self, refused: &mut Refused) {
        if let Err(error) = self.say().await {
            tracing::warn!(error = format!("{error:#}"), "overdue tasks were not looked for");
        }
        if let Err(error) = self.fail(refused).await {
            tracing::warn!(error = format!("{error:#}"), "overdue tasks were not failed");
        }
    }

    /// A log line for each task that has just passed the limit of its type.
    async fn say(&self) -> anyhow::Result<()> {
        if self.metrics.sla.is_empty() {
            return Ok(());
        }
        let (types, limits) = columns(&self.metrics.sla);
        for forget in self.query(FORGET, &[]).await? {
            self.query(forget.get(0), &[]).await?;
        }
        for table in self.query(LATE, &[]).await? {
            for task in self.query(table.get(0), &[&types, &limits, &AT_ONCE]).await? {
                tracing::warn!(
                    task.id = task.get::<_, &str>(0),
                    task.r#type = task.get::<_, &str>(1),
                    open_seconds = task.get::<_, f64>(2).round(),
                    "a task has been open past its limit: somebody should decide it"
                );
            }
        }
        Ok(())
    }

    async fn fail(&self, refused: &mut Refused) -> anyhow::Result<()> {
        if self.fail_after.is_empty() {
            return Ok(());
        }
        let registry = PostgresTaskRegistry::new(self.pool.clone());
        let (types, limits) = columns(&self.fail_after);
        let began = Instant::now();
        for task in self.query(TO_FAIL, &[&types, &limits, &AT_ONCE, &refused.left_alone()]).await? {
            // Behind locks each may take as long as a statement may.
            if began.elapsed() > self.patience {
                break;
            }
            let (id, seconds): (String, f64) = (task.get(0), task.get(2));
            let limit = humantime::format_duration(Duration::from_secs_f64(seconds));
            let error = json!({
                "code": "TASK_TIMEOUT",
                "message": format!("The task was open for longer than {limit} without a decision and was closed by policy."),
                "recovery": "transient",
            });
            let failed = match TaskId::parse(id.as_str()) {
                Ok(task) => patiently(self.patience, registry.fail(&task, Scope::Operator, error)).await,
                Err(error) => Ok(Err(error.into())),
            };
            match failed {
                Ok(Ok(_)) => {
                    tracing::warn!(task.id = id, %limit, "a task that nobody decided was failed by policy");
                }
                Ok(Err(problem)) if is_of_the_task(&problem) => {
                    let problem = words(problem);
                    tracing::warn!(task.id = id, %problem, "a task that nobody decided could not be failed");
                    refused.add(id);
                }
                Ok(Err(problem)) => return Err(words(problem)),
                Err(silent) => {
                    // The connection went back to its pool with the question unanswered.
                    self.pool.retain(|_, _| false);
                    return Err(silent.into());
                }
            }
        }
        Ok(())
    }

    async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> anyhow::Result<Vec<tokio_postgres::Row>> {
        let client = Loan::of(&self.pool).await?;
        let rows = patiently(self.patience, client.query(sql, parameters)).await?;
        client.give_back();
        rows.map_err(|error| anyhow::anyhow!(explain(&error)))
    }
}

/// Whether another task may fare better: the database works, and said no to this one.
fn is_of_the_task(problem: &RegistryError) -> bool {
    match problem {
        RegistryError::Pool(_) | RegistryError::Migration(_) => false,
        RegistryError::Database(error) => error.as_db_error().is_some_and(|said| {
            let (code, severity) = (said.code().code(), said.parsed_severity());
            !matches!(severity, Some(Severity::Fatal | Severity::Panic))
                && (code == SqlState::QUERY_CANCELED.code()
                    || !OUTAGES.iter().any(|class| code.starts_with(class)))
        }),
        _ => true,
    }
}

fn words(problem: RegistryError) -> anyhow::Error {
    match problem {
        RegistryError::Database(error) => anyhow::anyhow!(explain(&error)),
        problem => problem.into(),
    }
}

fn columns(limits: &BTreeMap<String, Duration>) -> (Vec<&str>, Vec<f64>) {
    limits.iter().map(|(name, limit)| (name.as_str(), limit.as_secs_f64())).unzip()
}

const LATE: &str = include_str!("overdue.sql");
const FORGET: &str = include_str!("overdue_forget.sql");
const TO_FAIL: &str = include_str!("overdue_fail.sql");
/// At each look, for each table: a flood of lines helps nobody.
const AT_ONCE: i64 = 100;
/// Classes of SQLSTATE: no connection, a transaction that takes no writes, nothing left of a resource, an operator,
/// the system, a bug.
const OUTAGES: [&str; 6] = ["08", "25", "53", "57", "58", "XX"];
const LEFT_ALONE: Duration = Duration::from_secs(3600);
/// Of those whose hour is over, so many are tried again at each look.
const AGAIN_AT_ONCE: usize = 10;
const STOP_PATIENCE: Duration = Duration::from_secs(2);
const MAX_REFUSED: usize = 10_000;
