//! Sellers who issue tasks, work on them and end them, in transactions of every kind.
//!
//! What a seller has done stands in the task itself, written by the same transaction: its
//! registration in `request_context`, that it was worked on in `progress`, and in each document
//! the number of the try that wrote it. So the task table, read at the end, is the truth about what
//! was committed, also where a seller never heard the answer to its COMMIT.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Error};
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::recovery::recover;

/// Starts this many sellers. They end, each after its transaction, when `stop` is cancelled.
pub fn start(
    sellers: usize,
    seed: u64,
    cluster: &Arc<Cluster>,
    lanes: &[SocketAddr],
    pace: Duration,
    stop: &CancellationToken,
) -> JoinSet<()> {
    let mut running = JoinSet::new();
    for number in 0..sellers {
        let (cluster, stop) = (cluster.clone(), stop.clone());
        let seller = Seller {
            number,
            lanes: lanes.to_vec(),
            dice: StdRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(number as u64)),
            serial: 0,
            open: Vec::new(),
        };
        running.spawn(async move { seller.run(&cluster, pace, stop).await });
    }
    running
}

/// Some ordinary tasks without haste or fault: issued, worked on, completed, each step after the
/// one before it was journaled. How many.
pub async fn calm(client: &Client, lanes: &[SocketAddr]) -> Result<u64, String> {
    let mut seller = Seller {
        number: 99,
        lanes: lanes.to_vec(),
        dice: StdRng::seed_from_u64(99),
        serial: 0,
        open: Vec::new(),
    };
    let text = |error: Error| error.to_string();
    let tasks = seller.issue(client, CALM, true).await.map_err(text)?;
    for state in ["working", "completed"] {
        recover(client).await?;
        seller.advance(client, &tasks, state).await.map_err(text)?;
    }
    recover(client).await?;
    Ok(CALM as u64)
}

struct Seller {
    number: usize,
    lanes: Vec<SocketAddr>,
    dice: StdRng,
    serial: u64,
    open: Vec<Task>,
}

#[derive(Clone)]
struct Task {
    id: String,
    worked: bool,
}

impl Seller {
    async fn run(mut self, cluster: &Cluster, pace: Duration, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let client = cluster.patient_client().await;
            while !stop.is_cancelled() {
                // Of a transaction that failed nothing is known: its tasks are left alone.
                if self.transaction(&client).await.is_err() && client.is_closed() {
                    break;
                }
                let pause = pace.mul_f64(self.dice.random_range(0.2..1.8));
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
    }

    /// One transaction; what it did is kept only if it was committed.
    async fn transaction(&mut self, client: &Client) -> Result<(), Error> {
        if client.batch_execute("BEGIN").await.is_err() {
            // After a failed statement; a session that is gone fails again.
            client.batch_execute("ROLLBACK").await?;
            client.batch_execute("BEGIN").await?;
        }
        let mut left = Vec::new();
        match self.dice.random_range(0..100) {
            0..40 => left = self.issue_some(client).await?,
            40..55 => {
                left = self.take(|task| !task.worked);
                self.advance(client, &left, "working").await?;
                left.iter_mut().for_each(|task| task.worked = true);
            }
            // Issued and ended in one transaction.
            55..58 => {
                let tasks = self.issue_some(client).await?;
                self.advance(client, &tasks, "completed").await?;
            }
            kind => {
                let tasks = self.take(|_| true);
                if kind < 65 {
                    client.batch_execute("SAVEPOINT regret").await?;
                    self.advance(client, &tasks, "failed").await?;
                    client.batch_execute("ROLLBACK TO regret").await?;
                }
                let ends = ["completed", "completed", "completed", "failed", "canceled", "rejected"];
                let end = ends[self.dice.random_range(0..ends.len())];
                self.advance(client, &tasks, end).await?;
                if self.dice.random_bool(0.15) {
                    left = tasks;
                    return self.roll_back(client, left).await;
                }
            }
        }
        if self.dice.random_bool(0.1) {
            tokio::time::sleep(Duration::from_millis(self.dice.random_range(20..600))).await;
        }
        if self.dice.random_bool(0.05) {
            return client.batch_execute("ROLLBACK").await;
        }
        client.batch_execute("COMMIT").await?;
        self.open.extend(left);
        Ok(())
    }

    /// Hesitates, and regrets. The tasks may be ended again later.
    async fn roll_back(&mut self, client: &Client, tasks: Vec<Task>) -> Result<(), Error> {
        if self.dice.random_bool(0.3) {
            tokio::time::sleep(Duration::from_millis(self.dice.random_range(20..600))).await;
        }
        client.batch_execute("ROLLBACK").await?;
        self.open.extend(tasks);
        Ok(())
    }

    fn take(&mut self, wanted: impl Fn(&Task) -> bool) -> Vec<Task> {
        let most = self.dice.random_range(1..=BATCH);
        let mut taken = Vec::new();
        self.open.retain(|task| {
            let take = taken.len() < most && wanted(task);
            if take {
                taken.push(task.clone());
            }
            !take
        });
        taken
    }

    async fn issue_some(&mut self, client: &Client) -> Result<Vec<Task>, Error> {
        let (many, registered) = (self.dice.random_range(1..=BATCH), self.dice.random_bool(0.85));
        self.issue(client, many, registered).await
    }

    /// Inserts tasks, most with a registration.
    async fn issue(&mut self, client: &Client, many: usize, registered: bool) -> Result<Vec<Task>, Error> {
        let tasks: Vec<Task> = (0..many)
            .map(|_| {
                self.serial += 1;
                Task { id: format!("s{}-{}", self.number, self.serial), worked: false }
            })
            .collect();
        let ids: Vec<&str> = tasks.iter().map(|task| task.id.as_str()).collect();
        let hears_work = self.dice.random_bool(0.2);
        let context = json!({ "registered": registered, "hears_work": registered && hears_work }).to_string();
        client.execute(INSERT, &[&ids, &context]).await?;
        if registered {
            let lane = self.lanes[self.dice.random_range(0..self.lanes.len())];
            let url = format!("https://localhost:{}/", lane.port());
            let states: &[&str] = if hears_work { &["working"] } else { &[] };
            client.query(REGISTER, &[&ids, &url, &states]).await?;
        }
        Ok(tasks)
    }

    /// Moves tasks to a state, with a document that names this try.
    async fn advance(&mut self, client: &Client, tasks: &[Task], state: &str) -> Result<(), Error> {
        self.serial += 1;
        let marker = format!("{}/{}", self.number, self.serial);
        let ids: Vec<&str> = tasks.iter().map(|task| task.id.as_str()).collect();
        let (sql, document) = match state {
            "working" => (WORK, json!({ "try": marker })),
            "failed" => (FAIL, json!({ "code": "SERVICE_UNAVAILABLE", "message": "no", "try": marker })),
            // Now and then one that daemons have little room for.
            _ if self.serial.is_multiple_of(20) => {
                (END, json!({ "try": marker, "price": 1.5, "padding": "x".repeat(100_000) }))
            }
            _ => (END, json!({ "try": marker, "price": 1.5 })),
        };
        let document = document.to_string();
        match state {
            "working" | "failed" => client.execute(sql, &[&ids, &document]).await?,
            _ => client.execute(sql, &[&ids, &document, &state]).await?,
        };
        Ok(())
    }
}

const INSERT: &str = "INSERT INTO decisioning_tasks (task_id, account_id, task_type, request_context, created_at, updated_at) \
     SELECT id, 'acct' || hashtext(id) % 4, 'create_media_buy', $2::text::jsonb, extract(epoch FROM now()), 0 FROM unnest($1::text[]) AS t(id)";
const REGISTER: &str = "SELECT taskbell.register_webhook(id, jsonb_build_object('url', $2::text || id, 'operation_id', 'op-' || id), \
     'decisioning_tasks', $3::text[])::text FROM unnest($1::text[]) AS t(id)";
const WORK: &str = "UPDATE decisioning_tasks SET state = 'working', progress = $2::text::jsonb WHERE task_id = ANY ($1::text[])";
const FAIL: &str =
    "UPDATE decisioning_tasks SET state = 'failed', error = $2::text::jsonb WHERE task_id = ANY ($1::text[])";
const END: &str =
    "UPDATE decisioning_tasks SET state = $3, result = $2::text::jsonb WHERE task_id = ANY ($1::text[])";
/// Tasks in one transaction at most.
const BATCH: usize = 20;
const CALM: usize = 100;
