//! `check`: a line for each thing that must be right, how bad it is where it is not, and what to
//! do then. It changes nothing, so it may be run anywhere and at any time.

mod finding;
mod keys;
mod server;
mod role;
mod schema;
mod listener;
mod secrets;
mod house;
mod holders;
mod connections;
mod destinations;
mod daemon;
mod backlog;

use std::time::Duration;

use clap::Args;
use tokio::time::timeout;
use tokio_postgres::{Client, Error, Transaction};

use super::super::config::{Config, ConfigError, Sources};
use super::super::database::{Connector, explain};
use super::super::pooler::Pooling;
use crate::migrations;
use finding::{Findings, Severity};

/// Checks configuration, keys, database and whatever else webhooks depend on.
///
/// A line for each: ok, WARN or FAIL, and what to do. A warning: webhooks go out, but not for
/// ever, or not as quickly as they could. Nothing is changed, and nothing sent to buyers.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 all is well, or there are warnings only; 1 something fails, \
                        with --strict also a warning; 2 it was called wrongly.")]
pub(super) struct Check {
    /// One JSON document instead of lines.
    #[arg(long)]
    json: bool,
    /// Warnings fail too.
    #[arg(long)]
    strict: bool,
    /// Also knock at buyers' endpoints: those owed a webhook now, and those used last.
    #[arg(long)]
    destinations: bool,
    /// Name transactions that have been open for longer.
    #[arg(long, value_name = "AGE", default_value = "5m", value_parser = humantime::parse_duration)]
    long_transactions: Duration,
}

impl Check {
    /// Runs every check; the exit code.
    pub(super) async fn run(&self, sources: &Sources) -> anyhow::Result<u8> {
        let mut found = Findings::default();
        match Config::load(sources) {
            Err(ConfigError(problems)) => {
                problems.into_iter().for_each(|says| found.broken("configuration", says));
            }
            Ok(config) => {
                found.ok("configuration", "every key is understood");
                self.everything(&config, &mut found).await;
            }
        }
        found.print(self.json)?;
        let tolerated = if self.strict { Severity::Ok } else { Severity::Warn };
        Ok(u8::from(found.worst() > tolerated))
    }

    async fn everything(&self, config: &Config, found: &mut Findings) {
        keys::signing(config, found).await;
        let sealing = keys::sealing(config, found);
        keys::certificates(config, found);
        daemon::here(config, found).await;
        let connector = match Connector::new(&config.database) {
            Ok(connector) => connector,
            Err(error) => return found.broken("database", error.to_string()),
        };
        let mut client = match connector.client().await {
            Ok(client) => client,
            Err(error) => return found.broken("database", error.to_string()),
        };
        let client = &mut client;
        let Some(pooling) = listener::pooler(&connector, found).await else { return };
        look(client, found, "database", async |look, found| server::server(look, found).await).await;
        look(client, found, "daemon", async |look, found| daemon::listens(look, found).await).await;
        if pooling == Pooling::None {
            listener::listener(&connector, found).await;
        }
        look(client, found, "notify queue", async |look, found| listener::queue(look, found).await).await;
        look(client, found, "connections", async |look, found| {
            connections::connections(look, config, found).await
        })
        .await;
        look(client, found, "transactions", async |look, found| {
            holders::holders(look, self.long_transactions, found).await
        })
        .await;
        look(client, found, "grants", async |look, found| role::role(look, config, found).await).await;
        match timeout(PATIENCE, migrations::current(client)).await {
            Ok(Ok(version)) if schema::version(version, found) => {}
            Ok(Ok(_)) => return,
            Ok(Err(error)) => return found.broken("schema", explain(&error)),
            Err(_) => return found.broken("schema", SILENT),
        }
        look(client, found, "triggers", async |look, found| schema::triggers(look, found).await).await;
        if let Some(keys) = &sealing {
            look(client, found, "sealed secrets", async |look, found| {
                secrets::registrations(look, keys, found).await
            })
            .await;
        }
        if let Some(source) = &config.sealed {
            look(client, found, "SDK outbox", async |look, found| {
                secrets::sdk_outbox(look, source, found).await
            })
            .await;
        }
        look(client, found, "webhooks", async |look, found| backlog::backlog(look, config, found).await)
            .await;
        look(client, found, "partitions", async |look, found| house::partitions(look, found).await).await;
        look(client, found, "outbox table", async |look, found| house::outbox(look, found).await).await;
        if self.destinations {
            let lanes =
                look(client, found, "destinations", async |look, _| destinations::lanes(look, config).await);
            if let Some(lanes) = lanes.await {
                destinations::knock(lanes, config, found).await;
            }
        }
    }
}

/// One look, in a read-only transaction of its own: one that fails spoils no other.
async fn look<T>(
    client: &mut Client,
    found: &mut Findings,
    check: &'static str,
    look: impl AsyncFnOnce(&Transaction<'_>, &mut Findings) -> Result<T, Error>,
) -> Option<T> {
    let looked = timeout(PATIENCE, async {
        let transaction = client.build_transaction().read_only(true).start().await?;
        look(&transaction, found).await
    });
    match looked.await {
        Ok(Ok(seen)) => return Some(seen),
        Ok(Err(error)) => found.broken(check, explain(&error)),
        Err(_) => found.broken(check, SILENT),
    }
    None
}

const SILENT: &str = "the database does not answer";
/// A little longer than the server lets a statement run by default.
const PATIENCE: Duration = Duration::from_secs(33);
