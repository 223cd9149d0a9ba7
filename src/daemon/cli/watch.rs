//! `watch add|list|remove`: which tables carry our triggers.
//!
//! Adding is made for a table that is in use: the lock that CREATE TRIGGER needs is waited for
//! only briefly and tried again, so that writers never queue up behind it for long, and the index
//! is built concurrently. Whatever was interrupted is finished by running it again.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::print_rows;
use crate::daemon::config::Config;
use crate::daemon::database::{Connector, explain};

#[derive(Debug, Subcommand)]
pub(super) enum Watch {
    /// Puts our triggers on a table, or brings them up to date.
    Add(Box<Add>),
    /// Shows the watched tables, and whether their triggers are still there.
    List {
        /// A JSON document a line.
        #[arg(long)]
        json: bool,
    },
    /// Takes our triggers and our index away. What is owed stays owed.
    Remove {
        /// The table, with its schema if `search_path` does not find it.
        table: String,
        /// How long to try for the table's lock.
        #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
        patience: Duration,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// The table, with its schema if `search_path` does not find it.
    table: String,
    /// adcp-python, adcp-typescript, adcp-python-outbox, or custom with the columns below.
    #[arg(long, default_value = "adcp-python")]
    profile: String,
    /// The column with the task's id.
    #[arg(long, value_name = "COLUMN")]
    id: Option<String>,
    /// The column with its state.
    #[arg(long, value_name = "COLUMN")]
    state: Option<String>,
    /// The column with its type.
    #[arg(long = "type", value_name = "COLUMN")]
    task_type: Option<String>,
    /// The column with its owner.
    #[arg(long, value_name = "COLUMN")]
    account: Option<String>,
    /// The column with its result, as jsonb.
    #[arg(long, value_name = "COLUMN")]
    result: Option<String>,
    /// The column with its error, as jsonb.
    #[arg(long, value_name = "COLUMN")]
    error: Option<String>,
    /// The column with the request's context, as jsonb.
    #[arg(long, value_name = "COLUMN")]
    context: Option<String>,
    /// The column with its progress, as jsonb.
    #[arg(long, value_name = "COLUMN")]
    progress: Option<String>,
    /// The column that says when it was created: a timestamp, or epoch seconds.
    #[arg(long, value_name = "COLUMN")]
    created: Option<String>,
    /// Never ring from this table: for sellers who use two-phase commit.
    #[arg(long)]
    no_doorbell: bool,
    /// Build no index for the gauges of open tasks.
    #[arg(long)]
    no_index: bool,
    /// How long to try for the table's lock.
    #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
    patience: Duration,
}

impl Watch {
    pub(super) async fn run(self, config: &Config) -> anyhow::Result<()> {
        let client = Connector::new(&config.database)?.durable().client().await?;
        match self {
            Self::Add(add) => add.run(&client).await,
            Self::List { json } => list(&client, json).await,
            Self::Remove { table, patience } => {
                if let Some(index) = index_of(&client, &table).await? {
                    unlimited(&client, &format!("DROP INDEX CONCURRENTLY IF EXISTS {index}")).await?;
                }
                let row = patiently(&client, patience, UNWATCH, &[&table]).await?;
                if !row.get::<_, bool>(0) {
                    bail!("{table} is not watched (`taskbell watch list`)");
                }
                println!("{table} is no longer watched");
                Ok(())
            }
        }
    }
}

impl Add {
    async fn run(&self, client: &Client) -> anyhow::Result<()> {
        let doorbell = !self.no_doorbell;
        let started = Instant::now();
        patiently(
            client,
            self.patience,
            WATCH,
            &[
                &self.table,
                &self.profile,
                &self.id,
                &self.state,
                &self.task_type,
                &self.account,
                &self.result,
                &self.error,
                &self.context,
                &self.progress,
                &self.created,
                &doorbell,
            ],
        )
        .await?;
        println!("{} is watched (after {:.0?})", self.table, started.elapsed());
        if self.no_index || self.profile == "adcp-python-outbox" {
            return Ok(());
        }
        let row = client.query_opt(INDEX, &[&self.table]).await.map_err(|error| anyhow!(explain(&error)))?;
        let Some(row) = row else { return Ok(()) };
        let (drop, create): (Option<String>, Option<String>) = (row.get(0), row.get(1));
        for statement in [drop, create].into_iter().flatten() {
            unlimited(client, &statement).await?;
        }
        println!("open tasks are indexed (after {:.0?})", started.elapsed());
        Ok(())
    }
}

/// Waits for a lock only as long as the table's writers can bear, again and again.
async fn patiently(
    client: &Client,
    patience: Duration,
    sql: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> anyhow::Result<tokio_postgres::Row> {
    let deadline = Instant::now() + patience;
    client.batch_execute(LOCK_TIMEOUT).await?;
    loop {
        match client.query_one(sql, parameters).await {
            Ok(row) => return Ok(row),
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                if Instant::now() >= deadline {
                    bail!(
                        "the table is locked by a long transaction; nothing was changed. Look at pg_stat_activity, or give more --patience"
                    );
                }
                sleep(PAUSE).await;
            }
            Err(error) => bail!(explain(&error)),
        }
    }
}

/// One statement that may take as long as the table is large, outside any transaction.
async fn unlimited(client: &Client, statement: &str) -> anyhow::Result<()> {
    client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").await?;
    client.batch_execute(statement).await.map_err(|error| anyhow!(explain(&error)))
}

async fn index_of(client: &Client, table: &str) -> anyhow::Result<Option<String>> {
    let row = client.query_opt(INDEX_OF, &[&table]).await.map_err(|error| anyhow!(explain(&error)))?;
    Ok(row.map(|row| row.get(0)))
}

async fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let rows = client.query(super::WATCHED, &[]).await.map_err(|error| anyhow!(explain(&error)))?;
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let (expected, found): (i32, i32) = (row.get(4), row.get(5));
            json!({
                "table": row.get::<_, &str>(1),
                "profile": row.get::<_, &str>(2),
                "doorbell": row.get::<_, bool>(3),
                "triggers": format!("{found} of {expected}"),
                "index": match row.get::<_, Option<bool>>(6) {
                    Some(true) => "yes",
                    Some(false) => "unfinished",
                    None => "no",
                },
                "ok": row.get::<_, bool>(0) && expected == found,
            })
        })
        .collect();
    print_rows(&rows, &["table", "profile", "doorbell", "triggers", "index", "ok"], json)?;
    if rows.iter().any(|row| row["ok"] == false) {
        writeln!(io::stderr(), "repair with `taskbell watch add TABLE`, or `watch remove` what is gone")?;
    }
    Ok(())
}

const WATCH: &str = "SELECT taskbell.watch($1::text::regclass, $2, $3::text::name, $4::text::name, $5::text::name, \
                     $6::text::name, $7::text::name, $8::text::name, $9::text::name, $10::text::name, \
                     $11::text::name, $12)";
const UNWATCH: &str = "SELECT taskbell.unwatch($1::text::regclass)";
const INDEX: &str = include_str!("watch_index.sql");
const INDEX_OF: &str = "SELECT i.indexrelid::regclass::text FROM taskbell.watched_table w \
                        JOIN pg_index i ON i.indrelid = w.relation JOIN pg_class c ON c.oid = i.indexrelid \
                        WHERE w.relation = $1::text::regclass AND c.relname = 'taskbell_open_' || w.watch_id";
/// Whoever comes after us in the lock's queue waits as long: a hiccup, not an outage.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '200ms'";
const PAUSE: Duration = Duration::from_millis(500);
