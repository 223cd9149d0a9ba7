//! Tasks that people have left open for too long: said once each, and failed where the operator
//! wants that.
//!
//! What was said is noted in `taskbell.overdue`, so that neither a restart nor a second daemon
//! says it again. Failing goes through the registry, like anybody's: the buyer is told.

use std::collections::BTreeMap;
use std::time::Duration;

use deadpool_postgres::Pool;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::config::Metrics;
use super::database::explain;
use crate::registry::{PostgresTaskRegistry, RegistryError, Scope, TaskRegistry};
use crate::task::TaskId;

/// Watches over open tasks.
pub(super) struct Overdue {
    /// Of sessions that wait for their commits: a buyer is told of what they write.
    pub(super) pool: Pool,
    pub(super) metrics: Metrics,
    /// By task type, after how long an open task is failed; empty: never.
    pub(super) fail_after: BTreeMap<String, Duration>,
}

impl Overdue {
    /// Runs until `stop` is cancelled. Without any limit it ends at once.
    pub(super) async fn run(self, stop: CancellationToken) {
        if self.metrics.sla.is_empty() && self.fail_after.is_empty() {
            return;
        }
        let mut beat = interval(self.metrics.refresh);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = beat.tick() => {}
            }
            if let Err(error) = self.say().await {
                tracing::warn!(error = %explain(&error), "overdue tasks were not looked for");
            }
            if let Err(error) = self.fail().await {
                tracing::warn!(%error, "overdue tasks were not failed");
            }
        }
    }

    /// A log line for each task that has just passed the limit of its type.
    async fn say(&self) -> Result<(), tokio_postgres::Error> {
        if self.metrics.sla.is_empty() {
            return Ok(());
        }
        let Ok(client) = self.pool.get().await else { return Ok(()) };
        for forget in client.query(FORGET, &[]).await? {
            client.execute(forget.get::<_, &str>(0), &[]).await?;
        }
        let (types, limits) = columns(&self.metrics.sla);
        for table in client.query(LATE, &[]).await? {
            for task in client.query(table.get::<_, &str>(0), &[&types, &limits, &AT_ONCE]).await? {
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

    async fn fail(&self) -> Result<(), RegistryError> {
        if self.fail_after.is_empty() {
            return Ok(());
        }
        let registry = PostgresTaskRegistry::new(self.pool.clone());
        let (types, limits) = columns(&self.fail_after);
        let tasks = self.pool.get().await?.query(TO_FAIL, &[&types, &limits, &AT_ONCE]).await?;
        for task in tasks {
            let (id, seconds): (String, f64) = (task.get(0), task.get(2));
            let limit = humantime::format_duration(Duration::from_secs_f64(seconds));
            let error = json!({
                "code": "TASK_TIMEOUT",
                "message": format!("The task was open for longer than {limit} without a decision and was closed by policy."),
                "recovery": "transient",
            });
            let Ok(task) = TaskId::parse(id.as_str()) else { continue };
            match registry.fail(&task, Scope::Operator, error).await {
                Ok(_) => {
                    tracing::warn!(task.id = id, %limit, "a task that nobody decided was failed by policy")
                }
                Err(problem) => {
                    tracing::warn!(task.id = id, %problem, "a task that nobody decided could not be failed");
                }
            }
        }
        Ok(())
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
