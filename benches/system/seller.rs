//! What a busy seller's commits lose: one UPDATE each, beside the same table without a trigger.

use std::process::{Command, Stdio};
use std::time::Duration;

use taskbell::daemon::embedded::find_binaries;
use tokio_postgres::Client;

use super::bed::{Bed, Daemon, fill, tidy};
use super::figures::Quantiles;
use super::table::{Table, thousands};

const DESTINATIONS: usize = 50;
const SECONDS: u32 = 10;
/// More than the fastest of them ends in its time.
const TASKS: i64 = 250_000;

/// Which table the clients write to, and who listens.
#[derive(Clone, Copy, PartialEq)]
enum Case {
    Bare,
    Notifying,
    Awake,
    Asleep,
}

impl Case {
    fn words(self) -> &'static str {
        match self {
            Self::Bare => "no trigger",
            Self::Notifying => "an outbox insert and a NOTIFY in each",
            Self::Awake => "taskbell, awake and delivering",
            Self::Asleep => "taskbell, asleep at the start",
        }
    }

    fn table(self) -> &'static str {
        match self {
            Self::Bare => "bare_tasks",
            Self::Notifying => "noisy_tasks",
            Self::Awake | Self::Asleep => "decisioning_tasks",
        }
    }
}

pub async fn seller(rounds: usize) -> Table {
    let mut table = Table::new(
        "Seller: commits a second, one UPDATE each",
        &["clients", "table", "commits/s, median of the rounds", "of no trigger", "worst round"],
    );
    let mut bed = Bed::new(DESTINATIONS).await;
    let client = bed.client().await;
    client.batch_execute(OTHER_TABLES).await.unwrap();
    for (clients, cases) in [
        (32, &[Case::Bare, Case::Awake, Case::Asleep, Case::Notifying][..]),
        (8, &[Case::Bare, Case::Asleep]),
        (4, &[Case::Bare, Case::Asleep]),
        (1, &[Case::Bare, Case::Asleep]),
    ] {
        let mut rates = vec![Vec::new(); cases.len()];
        let mut ratios = vec![Vec::new(); cases.len()];
        for _ in 0..rounds {
            for (n, case) in cases.iter().enumerate() {
                let rate = rate(&mut bed, &client, *case, clients).await;
                rates[n].push(rate);
                // Beside the bare table of the same round: the machine changes from minute to minute.
                ratios[n].push(rate / rates[0].last().unwrap());
            }
        }
        for ((case, rates), ratios) in cases.iter().zip(rates).zip(ratios) {
            let ratios = Quantiles::of(ratios);
            table.row([
                clients.to_string(),
                case.words().to_owned(),
                thousands(Quantiles::of(rates).median()),
                format!("{:.2}", ratios.median()),
                format!("{:.2}", ratios.at(0.0)),
            ]);
        }
    }
    table
}

async fn rate(bed: &mut Bed, client: &Client, case: Case, clients: u32) -> f64 {
    bed.receiver.forget();
    bed.empty(client).await;
    client.batch_execute(AGAIN).await.unwrap();
    let table = case.table();
    if table == "decisioning_tasks" {
        bed.tasks(client, TASKS).await;
        bed.journaled(client).await;
    } else {
        fill(client, table, "task_", TASKS).await;
    }
    let daemon: Option<Daemon> = match case {
        Case::Bare => None,
        _ => Some(bed.daemon(&[]).await),
    };
    tidy(client).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    if case == Case::Awake {
        pgbench(bed, table, clients, 2).await;
    }
    let rate = pgbench(bed, table, clients, SECONDS).await;
    if let Some(daemon) = daemon {
        daemon.stop();
    }
    rate
}

async fn pgbench(bed: &Bed, table: &str, clients: u32, seconds: u32) -> f64 {
    let script = bed.file("seller.sql", &format!("{};\n", UPDATE.replace("decisioning_tasks", table)));
    let mut command = Command::new(find_binaries().unwrap().join("pgbench"));
    command.args(["--no-vacuum", "--protocol=prepared", "--jobs=2"]);
    command.args([format!("--client={clients}"), format!("--time={seconds}")]);
    command.arg("--file").arg(script).arg(&bed.dsn).stderr(Stdio::inherit());
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("tps")).unwrap_or_else(|| panic!("{text}"));
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

const OTHER_TABLES: &str = include_str!("seller.sql");
const AGAIN: &str = "TRUNCATE bare_tasks, noisy_tasks, noisy_outbox; ALTER SEQUENCE next_task RESTART";
const UPDATE: &str = "UPDATE decisioning_tasks SET state = 'completed', updated_at = extract(epoch FROM clock_timestamp()), \
                      result = '{\"media_buy_id\": \"mb_12345\", \"packages\": [{\"package_id\": \"pkg_1\"}, {\"package_id\": \"pkg_2\"}]}' \
                      WHERE task_id = (SELECT 'task_' || nextval('next_task')) AND state NOT IN ('completed', 'failed')";
