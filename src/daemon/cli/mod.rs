//! The command line: what was typed, and which file carries it out.

mod check;
mod deliveries;
mod dev;
mod health;
mod keys;
mod lanes;
mod pages;
mod receive;
mod ring;
mod tasks;
mod watch;
mod why;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::config::{Config, Sources};
use super::database::Connector;
use super::keys::read_key_sets;
use super::{run, telemetry};
use crate::migrations;

/// Rings the buyer when a seller's human is done.
#[derive(Parser)]
#[command(name = "taskbell", version, about)]
pub struct Cli {
    /// The configuration file; /etc/taskbell/taskbell.toml if it exists.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The database, before what the configuration says.
    #[arg(long, global = true, value_name = "URL")]
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
    Check(check::Check),
    /// Looks at tasks and settles them.
    #[command(subcommand)]
    Tasks(tasks::Tasks),
    /// Looks at webhooks owed and delivered; retries and cancels them.
    #[command(subcommand)]
    Deliveries(deliveries::Deliveries),
    Why(why::Why),
    /// Shows the destinations where nothing goes out at the moment.
    #[command(subcommand)]
    Lanes(lanes::Lanes),
    /// Chooses the tables that carry our triggers.
    #[command(subcommand)]
    Watch(watch::Watch),
    /// Makes and rotates keys, shows their public halves, seals registrations anew.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// A sample buyer: verifies the webhooks that arrive and says so.
    Receive(receive::Receive),
    /// Sends one signed test webhook.
    Ring(ring::Ring),
    /// Asks the daemon on this machine how it is. For containers' health checks.
    Health(health::Health),
    /// Prints the completions of a shell.
    Completions(pages::Completions),
    /// Writes the manual pages.
    Man(pages::Man),
}

/// Carries out what was typed. The exit code: 0, or what `check` and `health` say.
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
            let telemetry = telemetry::start(&config).context("log.filter")?;
            if cfg!(not(feature = "otlp")) && sources.environment.contains_key("OTEL_EXPORTER_OTLP_ENDPOINT")
            {
                tracing::warn!(
                    "OTEL_EXPORTER_OTLP_ENDPOINT is set, but this build sends no spans: \
                     cargo install --features otlp"
                );
            }
            let keys = read_key_sets(&config.signing)?;
            let ran = run::run(config, keys, stop_on_signal()?, |_| ()).await;
            telemetry.finish().await;
            ran?;
        }
        Command::Migrate { print: true } => io::stdout().write_all(migrations::print().as_bytes())?,
        Command::Migrate { print: false } => {
            let connector = Connector::new(&Config::load(&sources)?.database)?.durable();
            match migrations::apply(&mut connector.client().await?).await?.as_slice() {
                [] => println!("the schema is up to date (version {})", migrations::LATEST),
                applied => println!("migrated to version {} ({} applied)", migrations::LATEST, applied.len()),
            }
        }
        Command::Check(check) => return check.run(&sources).await,
        Command::Tasks(tasks) => tasks.run(&Config::load(&sources)?).await?,
        Command::Deliveries(deliveries) => deliveries.run(&Config::load(&sources)?).await?,
        Command::Why(why) => why.run(&Config::load(&sources)?).await?,
        Command::Lanes(lanes) => lanes.run(&Config::load(&sources)?).await?,
        Command::Watch(watch) => watch.run(&Config::load(&sources)?).await?,
        Command::Keys(keys) => keys.run(&sources).await?,
        Command::Receive(receive) => receive.run(stop_on_signal()?).await?,
        Command::Ring(ring) => ring.run(&Config::load(&sources)?).await?,
        Command::Health(health) => return health.run(&Config::load(&sources)?).await,
        Command::Completions(completions) => completions.run(&mut Cli::command()),
        Command::Man(man) => man.run(Cli::command())?,
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

/// What `watch list` and `check` look at.
const WATCHED: &str = include_str!("watched.sql");

/// What `why` and `check` know of daemons.
const DAEMON: &str = include_str!("daemon.sql");

/// How many rows a list may be asked for.
const ROWS: std::ops::RangeFrom<i64> = 1..;

/// Rows as a table, or as the JSON that the database made of them.
fn print_rows(rows: &[Value], columns: &[&str], json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        return rows.iter().try_for_each(|row| writeln!(out, "{row}"));
    }
    let widths: Vec<usize> = columns
        .iter()
        .map(|column| {
            rows.iter().map(|row| cell(&row[column]).chars().count()).max().unwrap_or(0).max(column.len())
        })
        .collect();
    let mut line = |cells: Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    line(columns.iter().map(|column| (*column).to_owned()).collect())?;
    rows.iter().try_for_each(|row| line(columns.iter().map(|column| cell(&row[column])).collect()))
}

/// One value for a terminal. Control characters are escaped: ids and errors come from buyers.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => return "-".to_owned(),
        Value::String(text) => text,
        other => &other.to_string(),
    };
    escaped(text)
}

/// A text without control characters.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut safe, c| {
        if c.is_control() {
            safe.extend(c.escape_default())
        } else {
            safe.push(c)
        }
        safe
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_the_documented_subcommands() {
        let names = |command: &clap::Command| {
            command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect::<Vec<_>>().join(" ")
        };
        let cli = Cli::command();
        assert_eq!(
            names(&cli),
            "dev run migrate check tasks deliveries why lanes watch keys receive ring health completions man"
        );
        for (command, expected) in [
            ("tasks", "list show complete fail"),
            ("deliveries", "list show retry cancel"),
            ("lanes", "list open"),
            ("watch", "add list remove"),
            ("keys", "generate rotate jwks reseal"),
        ] {
            assert_eq!(names(cli.find_subcommand(command).unwrap()), expected);
        }
    }

    #[test]
    fn what_people_type_parses_and_mistakes_do_not() {
        for (line, parses) in [
            ("run --config /c.toml --database-url host=h", true),
            ("--config /c.toml run", true),
            ("migrate --print", true),
            ("check --json --strict --destinations --long-transactions 90s", true),
            ("check --long-transactions ages", false),
            ("tasks list --all --account a --limit 5 --json --table my_tasks", true),
            ("tasks list --limit -1", false),
            ("tasks show t1 --json", true),
            ("tasks complete t1 {}", true),
            ("tasks complete t1", false),
            ("tasks fail t1 {}", true),
            ("deliveries list --state pending --task t1 --json", true),
            ("deliveries list --state lost", false),
            ("deliveries list --limit 0", false),
            ("deliveries show whk_1 --json", true),
            ("deliveries retry 7 --past-horizon", true),
            ("deliveries retry seven", false),
            ("deliveries cancel 7", true),
            ("why whk_1 --table my_tasks --json", true),
            ("why op_1 --since 7d", true),
            ("why op_1 --since long", false),
            ("why", false),
            ("keys generate /k.jwk --kid k1", true),
            ("keys jwks /a.jwk /b.jwk", true),
            ("health --ready", true),
            ("completions zsh", true),
            ("completions cobol", false),
            ("man /tmp/pages", true),
            ("", false),
        ] {
            let parsed = Cli::try_parse_from(std::iter::once("taskbell").chain(line.split_whitespace()));
            assert_eq!(parsed.is_ok(), parses, "{line}");
        }
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        assert_eq!(cell(&json!("a\u{1b}[2J\nb\u{9b}é")), r"a\u{1b}[2J\nb\u{9b}é");
        assert_eq!(cell(&Value::Null), "-");
        assert_eq!(cell(&json!({ "a": 1 })), r#"{"a":1}"#);
    }
}
