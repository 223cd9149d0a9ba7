//! What every benchmark runs on: a PostgreSQL with real durability, buyers, and daemons as
//! operators run them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use secrecy::SecretString;
use taskbell::daemon::config::Database;
use taskbell::daemon::database::Connector;
use taskbell::daemon::embedded::{EmbeddedOptions, EmbeddedPostgres};
use taskbell::migrations;
use taskbell::outbox::{CircuitPolicy, NativeOptions, NativeOutbox};
use taskbell::task::UrlSchemes;
use tempfile::{NamedTempFile, TempDir};
use tokio_postgres::{Client, NoTls};

use super::processes::Processes;
use super::receiver::Receiver;
use super::scratch::scratch;
use super::tls::Identity;

/// Bytes of a result, where a benchmark is not about them.
pub const RESULT_BYTES: usize = 1000;

/// The machine's PostgreSQL and the buyers, for one benchmark.
pub struct Bed {
    pub receiver: Receiver,
    pub certificate: NamedTempFile,
    directory: TempDir,
    server: EmbeddedPostgres,
    pub dsn: String,
    owed_before: AtomicUsize,
}

impl Bed {
    /// An empty database with our schema, and so many destinations.
    pub async fn new(destinations: usize) -> Self {
        Self::with(destinations, &[]).await
    }

    /// The same, with more settings of the server.
    pub async fn with(destinations: usize, settings: &[&str]) -> Self {
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
            .iter()
            .chain(settings)
            .map(|setting| (*setting).to_owned())
            .collect(),
        };
        let server = EmbeddedPostgres::start(&options).unwrap();
        let identity = Identity::new();
        let (certificate, key) = (identity.certificate_file(), identity.key_file());
        let receiver = Receiver::start(destinations, certificate.path(), key.path());
        let dsn = server.dsn("bench");
        connect(&server.dsn("postgres")).await.batch_execute("CREATE DATABASE bench").await.unwrap();
        let bed = Self { receiver, certificate, directory, server, dsn, owed_before: AtomicUsize::new(0) };
        migrations::apply(&mut bed.client().await).await.unwrap();
        let mut generate = bed.taskbell(&["keys", "generate"]);
        assert!(
            generate.arg(bed.key()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
        );
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

    /// The server and everything it has started.
    pub fn server_processes(&self) -> Processes {
        let lock_file = self.directory.path().join("pg/data/postmaster.pid");
        let text = fs::read_to_string(lock_file).unwrap();
        Processes::family(text.lines().next().unwrap().parse().unwrap())
    }

    /// A command of the program that is measured; another build of it with `BENCH_TASKBELL`.
    pub fn taskbell(&self, arguments: &[&str]) -> Command {
        let program = std::env::var_os("BENCH_TASKBELL");
        let mut command = Command::new(program.unwrap_or_else(|| env!("CARGO_BIN_EXE_taskbell").into()));
        command.env_clear().args(arguments).env("DATABASE_URL", &self.dsn);
        command
    }

    /// A daemon with the defaults but for what follows, and for what the environment of the
    /// benchmark says: `TASKBELL_WORKER__CONCURRENCY=128 cargo bench --bench system -- cost`.
    pub async fn daemon(&self, settings: &[(&str, &str)]) -> Daemon {
        let mut command = self.taskbell(&["run"]);
        command
            .env("TASKBELL_SIGNING__KEY_FILES", self.key())
            .env("TASKBELL_HTTP__CA_FILE", self.certificate.path())
            .env("TASKBELL_GUARD__ALLOW_PRIVATE", "true")
            .env("TASKBELL_ADMIN__LISTEN", "127.0.0.1:0")
            .env("TASKBELL_LOG__FORMAT", "json")
            .env("TASKBELL_LOG__FILTER", "error,taskbell::daemon::run=info");
        command.envs(settings.iter().copied());
        command.envs(std::env::vars().filter(|(name, _)| name.starts_with("TASKBELL_")));
        Daemon::start(command).await
    }

    /// The outbox as the daemon has it.
    pub fn outbox(&self) -> NativeOutbox {
        let database = Database {
            url: Some(SecretString::from(self.dsn.clone())),
            max_connections: 4,
            statement_timeout: Duration::from_secs(30),
            ca_file: None,
        };
        let options = NativeOptions {
            lease: Duration::from_secs(60),
            horizon: Duration::from_secs(86_400),
            patience: Duration::from_secs(60),
            schemes: UrlSchemes::HttpsOnly,
            sealing: Arc::default(),
            circuits: CircuitPolicy::default(),
        };
        NativeOutbox::new(Connector::new(&database).unwrap().pool().unwrap(), options)
    }

    /// Tasks `task_1` to `task_N`, registered round the destinations, for 50 accounts.
    pub async fn tasks(&self, client: &Client, many: i64) {
        self.tasks_at(client, "task_", many, "ok", &self.receiver.ports).await;
    }

    /// The same with other names, another path, and these ports.
    pub async fn tasks_at(&self, client: &Client, prefix: &str, many: i64, path: &str, ports: &[u16]) {
        let ports: Vec<i32> = ports.iter().map(|port| i32::from(*port)).collect();
        fill(client, "decisioning_tasks", prefix, many).await;
        client.execute(REGISTRATIONS, &[&many, &prefix, &ports, &path]).await.unwrap();
    }

    /// As if nobody had ever issued a task.
    pub async fn empty(&self, client: &Client) {
        client.batch_execute(EMPTY).await.unwrap();
    }

    /// So many webhooks owed in an otherwise empty database, as after a night's work: what came
    /// before the end of the tasks was seen long ago, and autovacuum has been here.
    pub async fn owe(&self, client: &Client, many: i64, result_bytes: usize) {
        self.empty(client).await;
        // No seller issues a task twice; the journal would have more of each task with every round.
        let prefix = format!("task{}_", self.owed_before.fetch_add(1, Ordering::Relaxed));
        self.tasks_at(client, &prefix, many, "ok", &self.receiver.ports).await;
        self.journaled(client).await;
        self.complete(client, &prefix, result_bytes).await;
        tidy(client).await;
    }

    /// The same in the outbox at once, with other names, another path, and these ports: a million in half a minute.
    pub async fn owe_at(
        &self,
        client: &Client,
        prefix: &str,
        many: i64,
        path: &str,
        ports: &[u16],
        result_bytes: usize,
    ) {
        let ports: Vec<i32> = ports.iter().map(|port| i32::from(*port)).collect();
        client.execute(OWED, &[&many, &prefix, &ports, &path, &result(result_bytes)]).await.unwrap();
    }

    /// Lets a daemon see every state change that no webhook is owed for.
    pub async fn journaled(&self, client: &Client) {
        let daemon = self.daemon(&[]).await;
        let unseen = "SELECT count(*) FROM taskbell.outbox WHERE lane IS NULL";
        while client.query_one(unseen, &[]).await.unwrap().get::<_, i64>(0) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        daemon.stop();
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

    /// A file for a program to read.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

/// Tasks of 50 accounts in a table like the SDK's.
pub async fn fill(client: &Client, table: &str, prefix: &str, many: i64) {
    let sql = format!(
        "INSERT INTO {table} (task_id, account_id, task_type, created_at, updated_at) \
         SELECT $2::text || i, 'acct_' || (i % 50), 'create_media_buy', extract(epoch FROM now()), 0 \
         FROM generate_series(1, $1::bigint) AS i"
    );
    client.execute(&sql, &[&many, &prefix]).await.unwrap();
}

/// What autovacuum and the checkpointer would have done by and by.
pub async fn tidy(client: &Client) {
    for statement in ["VACUUM ANALYZE", "CHECKPOINT"] {
        client.batch_execute(statement).await.unwrap();
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
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .filter(|line| !line.contains("INFO"))
                .for_each(|line| eprintln!("daemon: {line}"))
        });
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

    pub fn processes(&self) -> Processes {
        Processes::one(self.pid())
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

const EMPTY: &str =
    "TRUNCATE decisioning_tasks, taskbell.outbox, taskbell.circuit; DELETE FROM taskbell.registration";
const REGISTRATIONS: &str = include_str!("registrations.sql");
const OWED: &str = include_str!("owed.sql");
const COMPLETE: &str = "UPDATE decisioning_tasks SET state = 'completed', result = $2::text::jsonb \
                        WHERE task_id LIKE $1";
const PACKAGE: &str =
    r#"{"package_id": "pkg_0001", "budget": 12500.50, "pacing": "even", "status": "active"}"#;
