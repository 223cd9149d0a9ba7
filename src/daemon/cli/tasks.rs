//! `tasks list|show|complete|fail`: the seller's back office, through the registry.

use anyhow::Context;
use clap::{Args, Subcommand, value_parser};
use serde_json::{Value, json};

use super::{ROWS, print_rows};
use crate::daemon::config::Config;
use crate::daemon::database::{Connector, explain};
use crate::registry::{PostgresTaskRegistry, Scope, Settled, TableName, TaskRegistry};
use crate::task::TaskId;

#[derive(Debug, Subcommand)]
pub(super) enum Tasks {
    /// Lists open tasks, oldest first.
    List {
        /// Finished ones too.
        #[arg(long)]
        all: bool,
        /// Only of this account.
        #[arg(long)]
        account: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 50, value_parser = value_parser!(i64).range(ROWS))]
        limit: i64,
        /// A JSON document a line.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        table: Table,
    },
    /// Shows one task and its timeline.
    Show {
        /// The task.
        id: TaskId,
        /// One JSON document.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        table: Table,
    },
    /// Completes a task.
    Complete {
        /// The task.
        id: TaskId,
        /// The result, as JSON.
        result: String,
        #[command(flatten)]
        table: Table,
    },
    /// Fails a task.
    Fail {
        /// The task.
        id: TaskId,
        /// The AdCP error object, as JSON: {"code": "…", "message": "…"}.
        error: String,
        #[command(flatten)]
        table: Table,
    },
}

#[derive(Debug, Args)]
pub(super) struct Table {
    /// The task table, in the AdCP Python SDK's form.
    #[arg(long = "table", default_value = "decisioning_tasks")]
    name: String,
}

impl Tasks {
    pub(super) async fn run(self, config: &Config) -> anyhow::Result<()> {
        let connector = Connector::new(&config.database)?;
        let said = |error: tokio_postgres::Error| anyhow::anyhow!(explain(&error));
        match self {
            Self::List { all, account, limit, json, table } => {
                let name = TableName::parse(&table.name)?;
                let client = connector.client().await?;
                let sql = LIST.replace("decisioning_tasks", name.as_str());
                let rows = client.query(&sql, &[&all, &account, &limit]).await.map_err(said)?;
                let rows: Vec<Value> = rows.iter().map(|row| row.get(0)).collect();
                print_rows(&rows, &["task_id", "account_id", "task_type", "state", "age"], json)?;
            }
            Self::Show { id, json, table } => {
                let registry = registry(&connector, &table)?;
                let task = registry.get(&id, Scope::Operator).await?.context("there is no such task")?;
                let client = connector.client().await?;
                let timeline = client.query(TIMELINE, &[&id.as_str()]).await.map_err(said)?;
                let timeline: Vec<Value> = timeline.iter().map(|row| row.get(0)).collect();
                let document = json!({
                    "task_id": task.id, "account_id": task.account, "task_type": task.task_type,
                    "state": task.state.as_str(), "progress": task.progress, "result": task.result,
                    "error": task.error, "request_context": task.request_context, "timeline": timeline,
                });
                if json {
                    println!("{document}");
                } else {
                    println!("{document:#}");
                }
            }
            Self::Complete { id, result, table } => {
                let result = serde_json::from_str(&result).context("the result is not JSON")?;
                say(
                    &id,
                    registry(&connector, &table)?.complete(&id, Scope::Operator, result).await?,
                    "completed",
                );
            }
            Self::Fail { id, error, table } => {
                let error = serde_json::from_str(&error).context("the error is not JSON")?;
                say(&id, registry(&connector, &table)?.fail(&id, Scope::Operator, error).await?, "failed");
            }
        }
        Ok(())
    }
}

fn registry(connector: &Connector, table: &Table) -> anyhow::Result<PostgresTaskRegistry> {
    Ok(PostgresTaskRegistry::with_table(connector.durable().pool()?, TableName::parse(&table.name)?))
}

fn say(id: &TaskId, settled: Settled, end: &str) {
    match settled {
        Settled::Now => println!("{id} is {end}"),
        Settled::Already => println!("{id} was {end} already, with an equal value"),
    }
}

const LIST: &str = include_str!("tasks_list.sql");
const TIMELINE: &str = include_str!("tasks_timeline.sql");
