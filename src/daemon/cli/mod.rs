//! The command line: what was typed, and which file carries it out.

mod check;
mod deliveries;
mod dev;
mod keys;
mod receive;
mod ring;
mod tasks;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::config::{Config, Sources};
use super::database::Connector;
use super::{run, telemetry};
use crate::migrations;

/// Rings the buyer when a seller's human is done.
#[derive(Debug, Parser)]
#[command(name = "taskbell", version, about)]
pub struct Cli {
    /// The configuration file; /etc/taskbell/taskbell.toml if it exists.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The database, before what the configuration says.
    #[arg(long, global = true, value_name = "URL", hide_env_values = true)]
    database_url: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything at once: PostgreSQL, daemon, a sample seller and a sample buyer.
    Dev(dev::Dev),
    /// The daemon.
    Run,
    /// Brings the schema up to date.
    Migrate {
        /// Print the SQL instead of applying it.
        #[arg(long)]
        print: bool,
    },
    /// Checks configuration, database, listener, triggers, keys and clock.
    Check {
        /// One JSON document instead of lines.
        #[arg(long)]
        json: bool,
    },
    /// Looks at tasks and settles them.
    #[command(subcommand)]
    Tasks(tasks::Tasks),
    /// Looks at webhooks owed and delivered; retries and cancels them.
    #[command(subcommand)]
    Deliveries(deliveries::Deliveries),
    /// Makes signing keys and shows their public halves.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// A sample buyer: verifies the webhooks that arrive and says so.
    Receive(receive::Receive),
    /// Sends one signed test webhook.
    Ring(ring::Ring),
}

/// Carries out what was typed. The exit code: 0, or 1 when `check` found a fault.
///
/// # Errors
/// What went wrong, for people.
pub async fn main(cli: Cli) -> anyhow::Result<u8> {
    telemetry::install_crypto();
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let sources = Sources { file: cli.config, database_url: cli.database_url, environment };
    match cli.command {
        Command::Dev(dev) => dev.run(sources).await?,
        Command::Run => {
            let config = Config::load(&sources)?;
            telemetry::start_logging(&config.log).context("log.filter")?;
            let keys = run::read_keys(&config.key_files)?;
            run::run(config, keys, stop_on_signal()?, notify_ready).await?;
        }
        Command::Migrate { print: true } => print!("{}", migrations::print()),
        Command::Migrate { print: false } => {
            let connector = Connector::new(&Config::load(&sources)?.database)?.durable();
            match migrations::apply(&mut connector.client().await?).await?.as_slice() {
                [] => println!("the schema is up to date (version {})", migrations::LATEST),
                applied => println!("migrated to version {} ({} applied)", migrations::LATEST, applied.len()),
            }
        }
        Command::Check { json } => return check::run(&sources, json).await,
        Command::Tasks(tasks) => tasks.run(&Config::load(&sources)?).await?,
        Command::Deliveries(deliveries) => deliveries.run(&Config::load(&sources)?).await?,
        Command::Keys(keys) => keys.run(&sources)?,
        Command::Receive(receive) => receive.run(stop_on_signal()?).await?,
        Command::Ring(ring) => ring.run(&Config::load(&sources)?).await?,
    }
    Ok(0)
}

/// Cancelled by SIGINT or SIGTERM.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}

/// Tells systemd; a no-op elsewhere.
fn notify_ready(_admin: std::net::SocketAddr) {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Rows as a table, or as the JSON that the database made of them.
fn print_rows(rows: &[serde_json::Value], columns: &[&str], json: bool) {
    if json {
        for row in rows {
            println!("{row}");
        }
        return;
    }
    let cell = |row: &serde_json::Value, column: &str| match &row[column] {
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let widths: Vec<usize> = columns
        .iter()
        .map(|column| {
            rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0).max(column.len())
        })
        .collect();
    let line = |cells: Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(columns.iter().map(|column| (*column).to_owned()).collect());
    for row in rows {
        line(columns.iter().map(|column| cell(row, column)).collect());
    }
}
