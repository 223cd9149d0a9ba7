//! `deliveries list|show|retry|cancel`: what operators may do, through the schema's own functions.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use anyhow::bail;
use clap::{Args, Subcommand, value_parser};
use serde_json::Value;
use tokio_postgres::Client;

use super::{ROWS, cell, print_rows};
use crate::daemon::config::Config;
use crate::daemon::database::{Connector, explain};

#[derive(Debug, Subcommand)]
pub(super) enum Deliveries {
    /// Lists webhooks, newest first.
    List {
        /// Only in this state.
        #[arg(long, value_parser = STATES)]
        state: Option<String>,
        /// Only of this task.
        #[arg(long)]
        task: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 50, value_parser = value_parser!(i64).range(ROWS))]
        limit: i64,
        /// A JSON document a line.
        #[arg(long)]
        json: bool,
    },
    /// Shows one webhook and its attempts, by delivery id, task id or key.
    Show {
        /// The id.
        id: String,
        /// A JSON document a line.
        #[arg(long)]
        json: bool,
    },
    /// Sends dead letters again, each with its key and its body: one, or all that match.
    Retry(Retry),
    /// Gives a webhook up for good.
    Cancel {
        /// The delivery id.
        id: i64,
    },
}

impl Deliveries {
    pub(super) async fn run(self, config: &Config) -> anyhow::Result<()> {
        let client = Connector::new(&config.database)?.durable().client().await?;
        let said = |error: tokio_postgres::Error| anyhow::anyhow!(explain(&error));
        let sealed = config.sealed.as_ref().map(|source| SEALED.replace(SDK_TABLE, &source.table));
        match self {
            Self::List { state, task, limit, json } => {
                let rows = client.query(LIST, &[&state, &task, &limit]).await.map_err(said)?;
                let mut rows: Vec<Value> = rows.iter().map(|row| row.get(0)).collect();
                if let Some(sql) = sealed {
                    let sealed = client.query(&sql, &[&state, &task, &NOBODY, &limit]).await.map_err(said)?;
                    rows.extend(sealed.iter().map(|row| row.get::<_, Value>(0)));
                }
                print_rows(&rows, &LIST_COLUMNS, json)?;
            }
            Self::Show { id, json } => {
                let rows = client.query(SHOW, &[&id]).await.map_err(said)?;
                let mut deliveries: Vec<Value> = rows.iter().map(|row| row.get(0)).collect();
                if let Some(sql) = sealed {
                    let sealed =
                        client.query(&sql, &[&NOBODY, &NOBODY, &id, &i64::MAX]).await.map_err(said)?;
                    deliveries.extend(sealed.iter().map(|row| row.get::<_, Value>(0)));
                }
                if deliveries.is_empty() {
                    bail!(
                        "no webhook is known under {id}: a task without registration owes none (`tasks show`)"
                    );
                }
                let mut out = io::stdout();
                for delivery in &deliveries {
                    let attempts = client
                        .query(ATTEMPTS, &[&delivery["delivery_id"].as_i64(), &delivery["source"].as_str()])
                        .await
                        .map_err(said)?;
                    let attempts: Vec<Value> = attempts.iter().map(|row| row.get(0)).collect();
                    if json {
                        let mut document = delivery.clone();
                        document["attempts"] = attempts.into();
                        writeln!(out, "{document}")?;
                        continue;
                    }
                    for (name, value) in
                        delivery.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null())
                    {
                        writeln!(out, "{name:>17}  {}", cell(value))?;
                    }
                    writeln!(out)?;
                    print_rows(
                        &attempts,
                        &["attempt", "started_at", "duration_ms", "status", "reason", "verdict"],
                        false,
                    )?;
                }
            }
            Self::Retry(retry) => retry.run(&client).await?,
            Self::Cancel { id } => {
                client.query_one(CANCEL, &[&id]).await.map_err(said)?;
                println!("delivery {id} is cancelled");
            }
        }
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(super) struct Retry {
    /// The delivery id; without one, all that match what follows.
    #[arg(required_unless_present_any = ["all", "lane", "task_type", "reason", "account", "older_than"])]
    id: Option<i64>,
    /// Every dead letter.
    #[arg(long, conflicts_with = "id")]
    all: bool,
    /// Only of this destination, as `lanes list` shows it.
    #[arg(long, conflicts_with = "id")]
    lane: Option<String>,
    /// Only for tasks of this type.
    #[arg(long = "type", conflicts_with = "id")]
    task_type: Option<String>,
    /// Only those given up for this reason.
    #[arg(long, conflicts_with = "id")]
    reason: Option<String>,
    /// Only of this account.
    #[arg(long, conflicts_with = "id")]
    account: Option<String>,
    /// Only for tasks that ended at least so long ago.
    #[arg(long, conflicts_with = "id", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// How many a second.
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Only show them.
    #[arg(long, conflicts_with = "id")]
    dry_run: bool,
    /// Send them although their buyers may have forgotten the keys.
    #[arg(long)]
    past_horizon: bool,
}

impl Retry {
    async fn run(&self, client: &Client) -> anyhow::Result<()> {
        let said = |error: tokio_postgres::Error| anyhow::anyhow!(explain(&error));
        if let Some(id) = self.id {
            client.query_one(RETRY, &[&id, &self.past_horizon]).await.map_err(said)?;
            println!("delivery {id} is due now");
            return Ok(());
        }
        let older_than = self.older_than.map(|age| age.as_secs_f64());
        let (mut after, mut starting): (i64, Option<SystemTime>) = (0, None);
        let (mut sent, mut late) = (0, 0);
        let word = if self.dry_run { "would be" } else { "are" };
        // Each batch stands by itself: after an error, what was shown before it is sent again.
        loop {
            let rows = client
                .query(
                    RETRY_ALL,
                    &[
                        &self.lane,
                        &self.task_type,
                        &self.reason,
                        &self.account,
                        &older_than,
                        &self.rate,
                        &self.past_horizon,
                        &self.dry_run,
                        &RETRIED_AT_ONCE,
                        &after,
                        &starting,
                    ],
                )
                .await
                .map_err(|error| {
                    anyhow::anyhow!("{} ({sent} webhooks {word} sent again)", explain(&error))
                })?;
            if !rows.is_empty() || after == 0 {
                let shown: Vec<Value> = rows.iter().map(|row| row.get(0)).collect();
                print_rows(&shown, &RETRY_COLUMNS, false)?;
            }
            for row in &rows {
                after = row.get(1);
                match row.get::<_, Option<SystemTime>>(2) {
                    Some(next) => (starting, sent) = (Some(next), sent + 1),
                    None => late += 1,
                }
            }
            if i64::try_from(rows.len()).is_ok_and(|rows| rows < RETRIED_AT_ONCE) {
                break;
            }
        }
        if late > 0 {
            println!("{late} would be due only after their horizon: a higher --rate, or --past-horizon");
        }
        println!("{sent} webhooks {word} sent again");
        Ok(())
    }
}

/// Of both the outbox and the journal, as `taskbell.delivery` shows them.
const STATES: [&str; 7] =
    ["pending", "in_flight", "expired", "invalid", "delivered", "superseded", "cancelled"];
const LIST: &str = include_str!("deliveries_list.sql");
const SHOW: &str = include_str!("deliveries_show.sql");
const ATTEMPTS: &str = include_str!("deliveries_attempts.sql");
const SEALED: &str = include_str!("deliveries_sealed.sql");
/// The name in the statement, replaced by the configured one.
const SDK_TABLE: &str = "adcp_task_webhook_outbox";
/// Whatever it is.
const NOBODY: Option<&str> = None;
const RETRY: &str = "SELECT taskbell.retry_delivery($1, $2)::text";
const RETRY_ALL: &str = include_str!("deliveries_retry.sql");
/// Dead letters that one statement sends again: a second's work for the database.
const RETRIED_AT_ONCE: i64 = 10_000;
const RETRY_COLUMNS: [&str; 6] =
    ["delivery_id", "task_id", "task_state", "lane_name", "last_reason", "next_attempt_at"];
const CANCEL: &str = "SELECT taskbell.cancel_delivery($1)::text";
const LIST_COLUMNS: [&str; 9] = [
    "source",
    "delivery_id",
    "task_id",
    "task_state",
    "state",
    "attempt_count",
    "next_attempt_at",
    "last_reason",
    "lane",
];
