//! A server of one test's own, with a standby if it wants one. Killed and promoted, it harms no
//! other test, and its directories go when the test process does.

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use taskbell::daemon::embedded::{EmbeddedOptions, EmbeddedPostgres, find_binaries};

use super::scratch;

pub struct Cluster {
    /// Its data and its socket.
    pub directory: PathBuf,
    settings: Vec<String>,
    server: EmbeddedPostgres,
}

impl Cluster {
    pub async fn start(settings: &[&str]) -> Self {
        let directory = scratch("taskbell-cluster-").keep();
        Self::in_directory(directory, settings.iter().map(|setting| (*setting).to_owned()).collect()).await
    }

    async fn in_directory(directory: PathBuf, settings: Vec<String>) -> Self {
        let options = EmbeddedOptions {
            directory: directory.clone(),
            durable: false,
            port: None,
            remove_after: true,
            settings: settings.clone(),
        };
        let server = tokio::task::spawn_blocking(move || EmbeddedPostgres::start(&options)).await.unwrap();
        Self { directory, settings, server: server.expect("a PostgreSQL server of the test's own") }
    }

    /// A streaming standby, through the slot `standby`.
    pub async fn standby(&self) -> Self {
        let directory = scratch("taskbell-standby-").keep();
        let (uid, gid) = owner(&self.directory);
        chown(&directory, Some(uid), Some(gid)).unwrap();
        let mut backup = Command::new(find_binaries().unwrap().join("pg_basebackup"));
        backup.args([
            "--checkpoint=fast",
            "--write-recovery-conf",
            "--no-sync",
            "--create-slot",
            "--slot=standby",
        ]);
        backup.args(["--username=postgres", "--host"]).arg(&self.directory);
        backup.arg("--pgdata").arg(directory.join("data")).uid(uid).gid(gid).current_dir("/");
        let done = tokio::task::spawn_blocking(move || backup.output().unwrap()).await.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Self::in_directory(directory, self.settings.clone()).await
    }

    pub fn dsn(&self) -> String {
        self.server.dsn("postgres")
    }

    /// As if its machine had gone.
    pub fn kill(self) {
        let lock_file = std::fs::read_to_string(self.directory.join("data/postmaster.pid")).unwrap();
        let pid = lock_file.lines().next().unwrap();
        assert!(Command::new("kill").args(["-KILL", pid]).status().unwrap().success());
    }
}

/// Whom a server runs as: its clients' tools must be the same.
pub fn owner(directory: &Path) -> (u32, u32) {
    let metadata = directory.metadata().unwrap();
    (metadata.uid(), metadata.gid())
}
