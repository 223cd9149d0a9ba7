//! graphile-worker, a job queue on PostgreSQL for Node.js, doing the same work.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::bed::{Bed, connect, result, tidy};

/// Where its packages are.
pub struct Peer {
    packages: PathBuf,
}

/// A running worker.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Peer {
    /// `BENCH_PEERS` names the directory that `just bench-peers` fills.
    pub fn find() -> Option<Self> {
        let packages: Option<PathBuf> = std::env::var_os("BENCH_PEERS").map(Into::into);
        let found = packages.filter(|packages| packages.join("node_modules/graphile-worker").exists());
        if found.is_none() {
            eprintln!("SKIPPED: graphile-worker (BENCH_PEERS names no directory with its packages)");
        }
        found.map(|packages| Self { packages })
    }

    /// A database of its own: its schema, and a task table whose trigger makes a job of each end.
    pub async fn set_up(&self, bed: &Bed, tasks: usize) -> tokio_postgres::Client {
        let admin = bed.client().await;
        admin.batch_execute("DROP DATABASE IF EXISTS peer WITH (FORCE)").await.unwrap();
        admin.batch_execute("CREATE DATABASE peer").await.unwrap();
        let install = self.command(bed, &["--install"]).status().unwrap();
        assert!(install.success());
        let client = connect(&bed.dsn_of("peer")).await;
        client.batch_execute(include_str!("peer/schema.sql")).await.unwrap();
        let ports: Vec<i32> = bed.receiver.ports.iter().map(|port| i32::from(*port)).collect();
        client
            .execute(include_str!("peer/tasks.sql"), &[&i64::try_from(tasks).unwrap(), &ports])
            .await
            .unwrap();
        client
    }

    /// Starts a worker with these options of worker.mjs.
    pub fn start(&self, bed: &Bed, options: &[&str]) -> Running {
        Running(self.command(bed, options).spawn().unwrap())
    }

    /// Webhooks a second over a backlog, with its local queue, batched completion, and more options.
    pub async fn drain(&self, bed: &mut Bed, owed: usize, result_bytes: usize, more: &[&str]) -> f64 {
        let client = self.set_up(bed, owed).await;
        // A thousand at a time: its triggers take minutes for 50,000 in one transaction.
        let end = "UPDATE tasks SET state = 'completed', result = $1::text::jsonb WHERE task_id = ANY ($2)";
        for first in (1..=owed).step_by(1000) {
            let tasks: Vec<String> = (first..first + 1000).map(|n| format!("task_{n}")).collect();
            client.execute(end, &[&result(result_bytes), &tasks]).await.unwrap();
        }
        tidy(&client).await;
        bed.receiver.forget();
        let worker = self.start(bed, &[&["--batched"], more].concat());
        bed.receiver.wait_for(1, Duration::from_secs(60)).await;
        let began = Instant::now();
        bed.receiver.wait_for(owed, Duration::from_secs(600)).await;
        let took = began.elapsed();
        drop(worker);
        owed as f64 / took.as_secs_f64()
    }

    fn command(&self, bed: &Bed, arguments: &[&str]) -> Command {
        let mut command = Command::new("node");
        command.arg(self.packages.join("worker.mjs")).args(arguments);
        command.env("PEER_DSN", bed.dsn_of("peer")).env("NODE_EXTRA_CA_CERTS", bed.certificate.path());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}
