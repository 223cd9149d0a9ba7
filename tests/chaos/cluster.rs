//! A private PostgreSQL that is killed and started again in its directory, and the reaper that
//! leaves nothing of a run behind.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use taskbell::daemon::embedded::{EmbeddedOptions, EmbeddedPostgres};
use taskbell::migrations;
use tokio_postgres::{Client, NoTls};

use super::scratch::scratch;

/// The server of one run.
pub struct Cluster {
    /// Everything of the run is in it.
    pub directory: PathBuf,
    options: EmbeddedOptions,
    dsn: String,
    // Before the reaper: it waits for the server.
    server: Mutex<Option<EmbeddedPostgres>>,
    reaper: Mutex<Child>,
}

impl Cluster {
    /// Starts it, with our schema in it.
    pub async fn start() -> Self {
        let directory = scratch("taskbell-chaos-").keep();
        let mut reaper = Command::new("/bin/sh");
        reaper.args(["-c", include_str!("reaper.sh"), "sh"]).arg(&directory);
        let reaper = reaper.stdin(Stdio::piped()).spawn().unwrap();
        let settings = ["max_connections=200", "shared_buffers=64MB", "log_min_messages=fatal"];
        let options = EmbeddedOptions {
            directory: directory.join("pg"),
            // A process that is killed leaves what it wrote with the kernel: no fsync is needed.
            durable: false,
            port: None,
            remove_after: false,
            settings: settings.map(str::to_owned).to_vec(),
        };
        let server = EmbeddedPostgres::start(&options).expect("a PostgreSQL server");
        let dsn = server.dsn("postgres");
        let cluster =
            Self { directory, options, dsn, server: Mutex::new(Some(server)), reaper: Mutex::new(reaper) };
        let mut client = cluster.client().await.expect("a connection");
        // What a seller has committed must not be forgotten; the daemons choose for themselves.
        client.batch_execute("ALTER DATABASE postgres SET synchronous_commit = on").await.unwrap();
        migrations::apply(&mut client).await.unwrap();
        client.batch_execute(include_str!("../it/support/rules.sql")).await.unwrap();
        client.batch_execute(include_str!("leases.sql")).await.unwrap();
        cluster
    }

    /// A connection that no fault of the network reaches.
    pub async fn client(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.dsn, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The same, as soon as the server takes one.
    pub async fn patient_client(&self) -> Client {
        loop {
            if let Ok(client) = self.client().await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.options.directory.join(".s.PGSQL.5432")
    }

    /// `kill -9` of the postmaster.
    pub fn crash(&self) {
        let lock_file = self.options.directory.join("data/postmaster.pid");
        let text = std::fs::read_to_string(lock_file).unwrap();
        signal("KILL", text.lines().next().unwrap().parse().unwrap());
    }

    /// Starts it again; the first tries fail while processes of the old one are still there.
    pub async fn restart(&self) {
        let old = self.server.lock().unwrap().take();
        let options = self.options.clone();
        let server = tokio::task::spawn_blocking(move || {
            drop(old);
            let mut tries = 0;
            loop {
                match EmbeddedPostgres::start(&options) {
                    Ok(server) => return server,
                    Err(error) if tries == 100 => panic!("the server does not come back: {error}"),
                    Err(_) => tries += 1,
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        *self.server.lock().unwrap() = Some(server.await.unwrap());
    }

    /// Tells the reaper that a daemon runs.
    pub fn started(&self, pid: u32) {
        self.tell(&format!("+{pid}"));
    }

    /// Tells the reaper that its number may be somebody else's now.
    pub fn ended(&self, pid: u32) {
        self.tell(&format!("-{pid}"));
    }

    fn tell(&self, line: &str) {
        let mut reaper = self.reaper.lock().unwrap();
        writeln!(reaper.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.server.lock().unwrap().take());
        let mut reaper = self.reaper.lock().unwrap();
        drop(reaper.stdin.take());
        let _ = reaper.wait();
    }
}

/// Sends a signal to a process that this run has started.
pub fn signal(name: &str, pid: u32) {
    let _ = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).stderr(Stdio::null()).status();
}
