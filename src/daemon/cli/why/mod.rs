//! `why`: one command for "why was my webhook not delivered?".
//!
//! Finds the tasks that a name stands for, gathers what is known of each, and hands it to
//! [`verdict`]. A name is a task id if there is such a task; else an operation id, a key or a
//! delivery id. It reads, and changes nothing.

mod case;
mod verdict;
mod words;
mod print;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::DAEMON;
use crate::daemon::config::Config;
use crate::daemon::database::{Connector, explain};
use case::Case;
use verdict::verdict;

/// Says why a webhook was not delivered, or that it was.
///
/// By task id it is quick. By operation id, key or delivery id the journal is read as a whole, which
/// takes a while where it is large: --since says how far back.
#[derive(Debug, Args)]
pub(super) struct Why {
    /// A task id, operation id, idempotency key or delivery id.
    what: String,
    /// Only in this task table, where several know the name.
    #[arg(long)]
    table: Option<String>,
    /// Read the journal only so far back, for a name that is no task id.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// A JSON document for each task.
    #[arg(long)]
    json: bool,
}

/// One task that the name may stand for, and all that is known of it.
struct Found {
    table: Option<String>,
    task_id: String,
    /// What `--json` prints, but for the verdict.
    known: Value,
}

impl Why {
    pub(super) async fn run(self, config: &Config) -> anyhow::Result<()> {
        let client = Connector::new(&config.database)?.client().await?;
        let search = Search::begin(&client, config).await.map_err(|error| anyhow!(explain(&error)))?;
        let mut found =
            search.find(&self.what, self.since).await.map_err(|error| anyhow!(explain(&error)))?;
        if let Some(table) = &self.table {
            found.retain(|found| found.table.as_ref() == Some(table));
        }
        if found.is_empty() {
            bail!(
                "{}",
                search.looked(&self.what, self.since.map_or(config.keep, |since| since.min(config.keep)))
            );
        }
        let mut out = io::stdout().lock();
        if found.len() > 1 && !self.json {
            return Ok(print::several(&mut out, &self.what, &judged(found)?)?);
        }
        for (found, case) in judged(found)? {
            let words = verdict(&case).words();
            if self.json {
                let mut document = found.known;
                document["verdict"] = words.verdict.into();
                document["says"] = words.says.into();
                document["todo"] = words.todo.into();
                writeln!(out, "{document}")?;
            } else {
                print::one(&mut out, &found, &case, &words)?;
            }
        }
        Ok(())
    }
}

fn judged(found: Vec<Found>) -> serde_json::Result<Vec<(Found, Case)>> {
    found
        .into_iter()
        .map(|found| serde_json::from_value(found.known.clone()).map(|case| (found, case)))
        .collect()
}

/// Where to look, and what was seen of daemons.
struct Search<'a> {
    client: &'a Client,
    tables: Vec<WatchedTable>,
    /// The SDK's outbox, where there is one, and whether the configuration serves it.
    sealed: Option<(String, bool)>,
    daemon: Value,
}

struct WatchedTable {
    watch_id: i16,
    name: String,
    sql: String,
}

impl<'a> Search<'a> {
    async fn begin(client: &'a Client, config: &Config) -> Result<Self, tokio_postgres::Error> {
        client.batch_execute("SET timezone TO 'UTC'").await?;
        let tables = client.query(TABLES, &[]).await?;
        let tables = tables
            .iter()
            .map(|row| WatchedTable { watch_id: row.get(0), name: row.get(1), sql: row.get(2) })
            .collect();
        let table = config.sealed.as_ref().map_or(SDK_TABLE, |source| source.table.as_str());
        let complete = client.query_opt(SDK_COLUMNS, &[&table]).await?;
        let complete = complete.is_some_and(|row| row.get::<_, Option<String>>(0).is_none());
        let sealed = complete.then(|| (table.to_owned(), config.sealed.is_some()));
        let daemon = client.query_one(DAEMON, &[]).await?;
        let daemon = json!({ "listens": daemon.get::<_, bool>(0), "awake": daemon.get::<_, bool>(1) });
        Ok(Self { client, tables, sealed, daemon })
    }

    /// Every task that the name stands for: by task id, and only if there is none by the rest.
    async fn find(&self, what: &str, since: Option<Duration>) -> Result<Vec<Found>, tokio_postgres::Error> {
        let mut names: BTreeSet<(Option<i16>, String)> = BTreeSet::new();
        for table in &self.tables {
            if self.task(table, what).await?.is_some() {
                names.insert((Some(table.watch_id), what.to_owned()));
            }
        }
        let named = |row: &tokio_postgres::Row| (Some(row.get::<_, i16>(0)), row.get::<_, String>(1));
        names.extend(self.client.query(FIND_TASK, &[&what]).await?.iter().map(named));
        if names.is_empty() {
            let since = since.map(|since| since.as_secs_f64());
            names.extend(self.client.query(FIND_OTHER, &[&what, &MANY, &since]).await?.iter().map(named));
        }
        let mut sealed = self.sealed(what).await?;
        // The SDK's rows name the task and not its table, which of several is the SDK's first.
        for delivery in &sealed {
            let task_id = delivery["task_id"].as_str().unwrap_or_default();
            if !names.iter().any(|(_, name)| name == task_id) {
                let mut home = None;
                for table in &self.tables {
                    if home.is_none() && self.task(table, task_id).await?.is_some() {
                        home = Some(table.watch_id);
                    }
                }
                names.insert((home, task_id.to_owned()));
            }
        }
        let mut found = Vec::new();
        for (watch_id, task_id) in names {
            if sealed.iter().all(|delivery| delivery["task_id"] != task_id.as_str()) {
                sealed.extend(self.sealed(&task_id).await?);
            }
            found.push(self.gather(watch_id, task_id, &sealed).await?);
        }
        Ok(found)
    }

    async fn gather(
        &self,
        watch_id: Option<i16>,
        task_id: String,
        sealed: &[Value],
    ) -> Result<Found, tokio_postgres::Error> {
        let table = self.tables.iter().find(|table| Some(table.watch_id) == watch_id);
        let mut known: Value = match watch_id {
            Some(watch_id) => self.client.query_one(JOURNAL, &[&watch_id, &task_id]).await?.get(0),
            None => json!({ "timeline": [], "registration": null, "deliveries": [] }),
        };
        known["task"] = match table {
            Some(table) => self.task(table, &task_id).await?.into(),
            None => Value::Null,
        };
        let owed = sealed.iter().filter(|delivery| delivery["task_id"] == task_id.as_str());
        if let Some(deliveries) = known["deliveries"].as_array_mut() {
            deliveries.extend(owed.cloned());
        }
        known["task_id"] = task_id.as_str().into();
        known["table"] = table.map(|table| table.name.as_str()).into();
        known["watched"] = table.is_some().into();
        known["daemon"] = self.daemon.clone();
        Ok(Found { table: table.map(|table| table.name.clone()), task_id, known })
    }

    async fn task(
        &self,
        table: &WatchedTable,
        task_id: &str,
    ) -> Result<Option<Value>, tokio_postgres::Error> {
        match self.client.query_opt(&table.sql, &[&task_id]).await {
            Ok(row) => Ok(row.map(|row| row.get(0))),
            // No id of this table's kind: not a number, not a UUID.
            Err(error) if error.code().is_some_and(is_data_exception) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn sealed(&self, what: &str) -> Result<Vec<Value>, tokio_postgres::Error> {
        let Some((table, served)) = &self.sealed else { return Ok(Vec::new()) };
        let sql = SEALED.replace(SDK_TABLE, table);
        let rows = self.client.query(&sql, &[&what, served, &MANY]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// What to say of a name that nothing has.
    fn looked(&self, what: &str, back: Duration) -> String {
        let tables: Vec<&str> = self.tables.iter().map(|table| table.name.as_str()).collect();
        let sealed = match &self.sealed {
            Some((table, _)) => format!("the SDK's outbox {table}"),
            None => "no outbox of the AdCP Python SDK, because there is none here".to_owned(),
        };
        format!(
            "nothing here is known as {}\n  looked for a task id, an operation id, an idempotency key and a \
             delivery id in\n  - the watched tables: {}\n  - registrations, webhooks owed, and the journal of the \
             last {}\n  - {sealed}\n  Is it the right database, and is the name whole?",
            super::cell(&what.into()),
            if tables.is_empty() { "none (`taskbell watch add`)".to_owned() } else { tables.join(", ") },
            humantime::format_duration(back),
        )
    }
}

fn is_data_exception(code: &SqlState) -> bool {
    code.code().starts_with("22")
}

/// Tasks that one name may stand for before the rest is left out.
const MANY: i64 = 20;
const TABLES: &str = include_str!("tables.sql");
const FIND_TASK: &str = include_str!("find_task.sql");
const FIND_OTHER: &str = include_str!("find_other.sql");
const JOURNAL: &str = include_str!("journal.sql");
const SEALED: &str = include_str!("sealed.sql");
const SDK_COLUMNS: &str = include_str!("../../sealed_columns.sql");
/// The name in the statement, replaced by the configured one; also where the SDK puts it.
const SDK_TABLE: &str = "adcp_task_webhook_outbox";
