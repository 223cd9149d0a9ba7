//! `lanes list|open`: where nothing goes out at the moment, and what waits there.

use clap::Subcommand;
use serde_json::Value;

use super::print_rows;
use crate::daemon::config::Config;
use crate::daemon::database::{Connector, explain};

#[derive(Debug, Subcommand)]
pub(super) enum Lanes {
    /// Shows every destination that owes or fails: rows that wait, its circuit, the last reason.
    List {
        /// A JSON document a line.
        #[arg(long)]
        json: bool,
    },
    /// Opens a closed circuit now, for all accounts or one, and makes due what waits there for its
    /// next try: one webhook goes first, and more with every success.
    Open {
        /// The lane, as `lanes list` shows it.
        lane: String,
        /// Only for this account.
        #[arg(long)]
        account: Option<String>,
    },
}

impl Lanes {
    pub(super) async fn run(self, config: &Config) -> anyhow::Result<()> {
        let client = Connector::new(&config.database)?.durable().client().await?;
        let said = |error: tokio_postgres::Error| anyhow::anyhow!(explain(&error));
        match self {
            Self::List { json } => {
                let rows = client.query(LIST, &[]).await.map_err(said)?;
                let rows: Vec<Value> = rows.iter().map(|row| row.get(0)).collect();
                print_rows(&rows, &COLUMNS, json)?;
            }
            Self::Open { lane, account } => {
                let opened: i64 = client.query_one(OPEN, &[&lane, &account]).await.map_err(said)?.get(0);
                println!("{opened} circuits opened");
            }
        }
        Ok(())
    }
}

const LIST: &str = include_str!("lanes_list.sql");
const OPEN: &str = "SELECT taskbell.open_circuits($1, $2)";
const COLUMNS: [&str; 9] =
    ["lane", "account_id", "circuit", "owed", "due", "oldest", "closed_until", "failures", "last_reason"];
