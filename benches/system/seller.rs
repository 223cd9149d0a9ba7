//! What a busy seller's commits lose: one UPDATE each, beside the same table without a trigger.

use std::process::{Command, Stdio};
use std::time::Duration;

use taskbell::daemon::embedded::find_binaries;
use tokio_postgres::Client;

use super::bed::{Bed, Daemon, fill, tidy};
use super::figures::Quantiles;
use super::table::{Table, thousands};

const DESTINATIONS: usize = 50;
/// Until a daemon is awake and delivers.
const WARM_UP_SECONDS: u32 = 2;

/// Which table the clients write to, and who listens.
#[derive(Clone, Copy, PartialEq)]
enum Case {
    Bare,
    Nothing,
    Narrow,
    Notifying,
    Silent,
    Awake,
    Asleep,
    Long,
}

impl Case {
    fn words(self) -> &'static str {
        match self {
            Self::Bare => "no trigger",
            Self::Nothing => "a trigger that does nothing",
            Self::Narrow => "an outbox insert in each: three columns, one index",
            Self::Notifying => "an outbox insert and a NOTIFY in each",
            Self::Silent => "taskbell's trigger alone, the bell silent",
            Self::Awake => "taskbell, awake and delivering",
            Self::Asleep => "taskbell, asleep at the start",
            Self::Long => "taskbell, delivering, 40 s instead of 10",
        }
    }

    fn table(self) -> &'static str {
        match self {
            Self::Bare => "bare_tasks",
            Self::Nothing => "calm_tasks",
            Self::Narrow => "narrow_tasks",
            Self::Notifying => "noisy_tasks",
            Self::Silent | Self::Awake | Self::Asleep | Self::Long => "decisioning_tasks",
        }
    }

    /// More than they end in a second.
    fn tasks_a_second(self) -> i64 {
        if self.table() == "decisioning_tasks" { 20_000 } else { 40_000 }
    }

    /// Longer than `worker.yield_for`, so that webhooks go first again.
    fn seconds(self) -> u32 {
        if self == Self::Long { 40 } else { 10 }
    }
}

pub async fn seller(rounds: usize, only: Option<u32>) -> Table {
    let mut table = Table::new(
        "Seller: commits a second, one UPDATE each",
        &[
            "clients",
            "table",
            "commits/s, median of the rounds",
            "of no trigger",
            "worst round",
            "delivered/s meanwhile",
        ],
    );
    let mut bed = Bed::new(DESTINATIONS).await;
    let client = bed.client().await;
    client.batch_execute(OTHER_TABLES).await.unwrap();
    for (clients, cases) in [
        (32, &[Case::Bare, Case::Silent, Case::Awake, Case::Asleep][..]),
        (32, &[Case::Bare, Case::Nothing, Case::Narrow, Case::Notifying]),
        (32, &[Case::Bare, Case::Long]),
        (8, &[Case::Bare, Case::Asleep]),
        (4, &[Case::Bare, Case::Asleep]),
        (1, &[Case::Bare, Case::Silent, Case::Asleep]),
    ] {
        if only.is_some_and(|only| only != clients) {
            continue;
        }
        let mut rates = vec![Vec::new(); cases.len()];
        let mut ratios = vec![Vec::new(); cases.len()];
        let mut deliveries = vec![Vec::new(); cases.len()];
        let rounds = if cases.contains(&Case::Long) { 1 } else { rounds };
        for _ in 0..rounds {
            for (n, case) in cases.iter().enumerate() {
                let (rate, delivered) = rate(&mut bed, &client, *case, clients).await;
                deliveries[n].push(delivered);
                rates[n].push(rate);
                // Beside the bare table of the same round: the machine changes from minute to minute.
                ratios[n].push(rate / rates[0].last().unwrap());
            }
        }
        for (((case, rates), ratios), delivered) in cases.iter().zip(rates).zip(ratios).zip(deliveries) {
            let ratios = Quantiles::of(ratios);
            table.row([
                clients.to_string(),
                case.words().to_owned(),
                thousands(Quantiles::of(rates).median()),
                format!("{:.2}", ratios.median()),
                format!("{:.2}", ratios.at(0.0)),
                thousands(Quantiles::of(delivered).median()),
            ]);
        }
    }
    table
}

/// Commits a second, and webhooks that arrived in a second of that time.
async fn rate(bed: &mut Bed, client: &Client, case: Case, clients: u32) -> (f64, f64) {
    bed.empty(client).await;
    client.batch_execute(AGAIN).await.unwrap();
    let (table, seconds) = (case.table(), case.seconds());
    let tasks = case.tasks_a_second() * i64::from(seconds + WARM_UP_SECONDS);
    if table == "decisioning_tasks" {
        bed.tasks(client, tasks).await;
        bed.journaled(client).await;
    } else {
        fill(client, table, "task_", tasks).await;
    }
    let daemon: Option<Daemon> = match case {
        Case::Bare | Case::Nothing | Case::Narrow | Case::Silent => None,
        _ => Some(bed.daemon(&[]).await),
    };
    tidy(client).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    match case {
        Case::Awake | Case::Long => drop(pgbench(bed, table, clients, WARM_UP_SECONDS).await),
        // As a daemon does that is awake.
        Case::Silent => client.batch_execute(SILENCE).await.unwrap(),
        Case::Bare | Case::Nothing | Case::Narrow | Case::Notifying | Case::Asleep => {}
    }
    bed.receiver.forget();
    let rate = pgbench(bed, table, clients, seconds).await;
    let delivered = bed.receiver.count() as f64 / f64::from(seconds);
    if let Some(daemon) = daemon {
        daemon.stop();
    }
    client.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    let taken: i64 = client.query_one("SELECT last_value FROM next_task", &[]).await.unwrap().get(0);
    assert!(taken < tasks, "{taken} commits of {tasks} tasks: the last ones changed nothing");
    (rate, delivered)
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
const AGAIN: &str = "TRUNCATE bare_tasks, calm_tasks, narrow_tasks, noisy_tasks, noisy_outbox; \
                     ALTER SEQUENCE next_task RESTART";
const SILENCE: &str = "SELECT pg_advisory_lock(8386110886190083180)";
const UPDATE: &str = "UPDATE decisioning_tasks SET state = 'completed', updated_at = extract(epoch FROM clock_timestamp()), \
                      result = '{\"media_buy_id\": \"mb_12345\", \"packages\": [{\"package_id\": \"pkg_1\"}, {\"package_id\": \"pkg_2\"}]}' \
                      WHERE task_id = (SELECT 'task_' || nextval('next_task')) AND state NOT IN ('completed', 'failed')";
