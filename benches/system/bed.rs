//! What every benchmark runs on: a PostgreSQL with real durability, buyers, and daemons as
//! operators run them.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use taskbell::daemon::embedded::{EmbeddedOptions, EmbeddedPostgres};
use taskbell::migrations;
use tempfile::{NamedTempFile, TempDir};
use tokio_postgres::{Client, NoTls};

use super::receiver::Receiver;
use super::scratch::scratch;
use super::tls::Identity;

/// The machine's PostgreSQL and the buyers, for one benchmark.
pub struct Bed {
    pub receiver: Receiver,
    pub certificate: NamedTempFile,
    directory: TempDir,
    server: EmbeddedPostgres,
    pub dsn: String,
}

impl Bed {
    /// An empty database with our schema, and so many destinations.
    pub async fn new(destinations: usize) -> Self {
        let directory = scratch("taskbell-bench-");
        let options = EmbeddedOptions {
            directory: directory.path().join("pg"),
            durable: true,
            port: None,
            remove_after: false,
            // Everything else as PostgreSQL comes; a checkpoint in the middle would be noise.
            settings: [
                "max_connections=200",
                "shared_buffers=512MB",
                "max_wal_size=8GB",
                "checkpoint_timeout=30min",
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        let server = EmbeddedPostgres::start(&options).unwrap();
        let identity = Identity::new();
        let (certificate, key) = (identity.certificate_file(), identity.key_file());
        let receiver = Receiver::start(destinations, certificate.path(), key.path());
        let dsn = server.dsn("bench");
        connect(&server.dsn("postgres")).await.batch_execute("CREATE DATABASE bench").await.unwrap();
        let bed = Self { receiver, certificate, directory, server, dsn };
        migrations::apply(&mut bed.client().await).await.unwrap();
        let mut generate = bed.taskbell(&["keys", "generate"]);
        assert!(generate.arg(bed.key()).stdout(Stdio::null()).status().unwrap().success());
        bed
    }

    /// The signing key.
    pub fn key(&self) -> PathBuf {
        self.directory.path().join("key.jwk")
    }

    /// The same server's other database.
    pub fn dsn_of(&self, database: &str) -> String {
        self.server.dsn(database)
    }

    pub async fn client(&self) -> Client {
        connect(&self.dsn).await
    }

    /// A command of the program that is measured.
    pub fn taskbell(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskbell"));
        command.env_clear().args(arguments).env("DATABASE_URL", &self.dsn);
        command
    }

    /// A daemon with the defaults but for what follows.
    pub async fn daemon(&self, settings: &[(&str, &str)]) -> Daemon {
        let mut command = self.taskbell(&["run"]);
        command
            .env("TASKBELL_SIGNING__KEY_FILES", self.key())
            .env("TASKBELL_HTTP__CA_FILE", self.certificate.path())
            .env("TASKBELL_GUARD__ALLOW_PRIVATE", "true")
            .env("TASKBELL_ADMIN__LISTEN", "127.0.0.1:0")
            .env("TASKBELL_LOG__FORMAT", "json")
            .env("TASKBELL_LOG__FILTER", "error,taskbell::daemon=info");
        command.envs(settings.iter().copied());
        Daemon::start(command).await
    }

    /// Tasks `task_1` to `task_N`, registered round the destinations, for 50 accounts.
    pub async fn tasks(&self, client: &Client, many: i64) {
        self.tasks_at(client, "task_", many, "ok", &self.receiver.ports).await;
    }

    /// The same with other names, another path, and these ports.
    pub async fn tasks_at(&self, client: &Client, prefix: &str, many: i64, path: &str, ports: &[u16]) {
        let ports: Vec<i32> = ports.iter().map(|port| i32::from(*port)).collect();
        client.execute(TASKS, &[&many, &prefix]).await.unwrap();
        client.execute(REGISTRATIONS, &[&many, &prefix, &ports, &path]).await.unwrap();
    }

    /// Ends all of them in one transaction, with results of so many bytes.
    pub async fn complete(&self, client: &Client, prefix: &str, result_bytes: usize) {
        let pattern = format!("{prefix}%");
        client.execute(COMPLETE, &[&pattern, &result(result_bytes)]).await.unwrap();
    }

    /// How many webhooks are owed.
    pub async fn owed(&self, client: &Client) -> i64 {
        client
            .query_one("SELECT count(*) FROM taskbell.outbox WHERE lane IS NOT NULL", &[])
            .await
            .unwrap()
            .get(0)
    }

    /// Waits until everything owed is settled.
    pub async fn settled(&self, client: &Client) {
        while self.owed(client).await > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A JSON document of about so many bytes, made as results of `create_media_buy` are.
pub fn result(bytes: usize) -> String {
    let mut packages = Vec::new();
    while packages.len() * PACKAGE.len() < bytes.saturating_sub(40) {
        packages.push(PACKAGE);
    }
    format!(r#"{{"media_buy_id": "mb_12345", "packages": [{}]}}"#, packages.join(", "))
}

pub async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A running daemon.
pub struct Daemon {
    child: Child,
}

impl Daemon {
    async fn start(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let admin = loop {
            let line = lines.next().expect("the daemon says where it listens").unwrap();
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if let Some(address) = line["admin"].as_str() {
                break address.to_owned();
            }
        };
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("daemon: {line}")));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let ready = format!("http://{admin}/readyz");
        while http.get(&ready).send().await.is_ok_and(|answer| !answer.status().is_success()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Self { child }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and waits.
    pub fn stop(mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const TASKS: &str = "INSERT INTO decisioning_tasks (task_id, account_id, task_type, created_at, updated_at) \
                     SELECT $2::text || i, 'acct_' || (i % 50), 'create_media_buy', extract(epoch FROM now()), 0 \
                     FROM generate_series(1, $1::bigint) AS i";
const REGISTRATIONS: &str = include_str!("registrations.sql");
const COMPLETE: &str = "UPDATE decisioning_tasks SET state = 'completed', result = $2::text::jsonb \
                        WHERE task_id LIKE $1";
const PACKAGE: &str =
    r#"{"package_id": "pkg_0001", "budget": 12500.50, "pacing": "even", "status": "active"}"#;
