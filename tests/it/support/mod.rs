//! One private cluster per test process, one database per test, a scripted receiver.

pub mod browser;
pub mod cluster;
pub mod daemon;
pub mod panels;
pub mod peer;
pub mod prometheus;
pub mod properties;
#[path = "../../chaos/proxy.rs"]
#[allow(dead_code, reason = "the chaos test uses more of it")]
pub mod proxy;
pub mod receiver;
pub mod owed;
mod scratch;
pub mod scripted;
pub mod tls;
pub mod unwired;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use deadpool_postgres::Pool;
use secrecy::SecretString;
use taskbell::daemon::config::Database;
use taskbell::daemon::database::Connector;
use taskbell::daemon::embedded::{EmbeddedOptions, EmbeddedPostgres};
use taskbell::migrations;
use tokio_postgres::Client;

use proxy::Proxy;
pub use scratch::scratch;

/// The server ends and its directory goes when this process does, however it ends: see
/// [`EmbeddedPostgres`].
fn cluster() -> &'static EmbeddedPostgres {
    static CLUSTER: OnceLock<EmbeddedPostgres> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let directory = scratch("taskbell-test-").keep();
        EmbeddedPostgres::start(&EmbeddedOptions {
            directory,
            durable: false,
            port: None,
            remove_after: true,
            settings: ["max_connections=300", "shared_buffers=64MB", "max_locks_per_transaction=256"]
                .map(str::to_owned)
                .to_vec(),
        })
        .expect("a PostgreSQL server for the tests")
    })
}

/// A database of one test's own.
pub struct TestDatabase {
    pub dsn: String,
    pub connector: Connector,
}

impl TestDatabase {
    /// An empty database.
    pub async fn empty() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        taskbell::daemon::telemetry::install_crypto();
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let server = tokio::task::spawn_blocking(cluster).await.unwrap();
        let admin = connector(&server.dsn("postgres")).client().await.unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let dsn = server.dsn(&name);
        Self { connector: connector(&dsn), dsn }
    }

    /// A database with the schema and `decisioning_tasks`.
    pub async fn migrated() -> Self {
        let database = Self::empty().await;
        let mut client = database.client().await;
        migrations::apply(&mut client).await.unwrap();
        client.batch_execute(RULES).await.unwrap();
        database
    }

    /// The same database under another connection string.
    pub fn at(dsn: &str) -> Self {
        Self { connector: connector(dsn), dsn: dsn.to_owned() }
    }

    /// The same database behind a network of the test's own.
    pub async fn behind_a_proxy(&self) -> (Self, Proxy) {
        let socket = self.dsn.split('\'').nth(1).unwrap();
        let proxy = Proxy::start(format!("{socket}/.s.PGSQL.5432").into()).await;
        let (_, rest) = self.dsn.split_once(" user=").unwrap();
        let dsn = format!("host=127.0.0.1 port={} sslmode=disable user={rest}", proxy.port);
        (Self { connector: connector(&dsn), dsn }, proxy)
    }

    pub async fn client(&self) -> Client {
        self.connector.client().await.unwrap()
    }

    pub fn pool(&self) -> Pool {
        self.connector.pool().unwrap()
    }
}

fn connector(dsn: &str) -> Connector {
    Connector::new(&Database {
        url: Some(SecretString::from(dsn)),
        max_connections: 16,
        statement_timeout: Duration::from_secs(60),
        ca_file: None,
    })
    .unwrap()
}

/// Waits for something that will come; fails when it has not come after a generous while.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came: {what}");
}

/// Issues one task by SQL, with a registration at `url` if there is one.
pub async fn issue(client: &Client, id: &str, url: Option<&str>) {
    client.execute(INSERT, &[&id]).await.unwrap();
    if let Some(url) = url {
        let config = serde_json::json!({ "url": url, "operation_id": format!("op_{id}") }).to_string();
        client.batch_execute("SET taskbell.allow_http = on").await.unwrap();
        client
            .query_one("SELECT taskbell.register_webhook($1, $2::text::jsonb)::text", &[&id, &config])
            .await
            .unwrap();
    }
}

/// Completes one task by SQL.
pub async fn complete(client: &Client, id: &str) {
    let done = client.execute(COMPLETE, &[&id]).await.unwrap();
    assert_eq!(done, 1);
}

pub type Shared<T> = Arc<std::sync::Mutex<T>>;

pub const INSERT: &str = "INSERT INTO decisioning_tasks (task_id, account_id, task_type, created_at, updated_at) \
                          VALUES ($1, 'acct', 'create_media_buy', extract(epoch FROM now()), 0)";
pub const COMPLETE: &str =
    "UPDATE decisioning_tasks SET state = 'completed', result = '{\"n\": 1.50}' WHERE task_id = $1";

/// Constraints that production goes without.
const RULES: &str = include_str!("rules.sql");
