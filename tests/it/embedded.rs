//! The private server: keeps its data, and never outlives whoever started it.

use std::process::{Command, Stdio};
use std::time::Duration;

use taskbell::daemon::embedded::{EmbeddedOptions, EmbeddedPostgres};
use tokio_postgres::NoTls;

use super::support::eventually;

fn options(directory: &std::path::Path) -> EmbeddedOptions {
    EmbeddedOptions {
        directory: directory.join("pg"),
        durable: false,
        port: None,
        remove_after: false,
        settings: Vec::new(),
    }
}

/// A directory that the server's user can reach.
fn scratch() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::Builder::new().prefix("taskbell-embedded-").tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

#[tokio::test]
async fn data_is_kept_between_runs() {
    let directory = scratch();
    for run in 0..2 {
        let options = options(directory.path());
        let server =
            tokio::task::spawn_blocking(move || EmbeddedPostgres::start(&options)).await.unwrap().unwrap();
        let (client, connection) = tokio_postgres::connect(&server.dsn("postgres"), NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        client
            .batch_execute("CREATE TABLE IF NOT EXISTS t (run int); INSERT INTO t VALUES (0)")
            .await
            .unwrap();
        let rows: i64 = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
        assert_eq!(rows, run + 1);
        drop(client);
        let _ = connection.await;
        tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
        assert!(!directory.path().join("pg/data/postmaster.pid").exists());
    }
}

#[tokio::test]
async fn the_server_stops_when_its_parent_is_killed() {
    let directory = scratch();
    let mut parent = Command::new(env!("CARGO_BIN_EXE_taskbell"))
        .args(["dev", "--directory"])
        .arg(directory.path().join("pg"))
        .env_remove("DATABASE_URL")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid_file = directory.path().join("pg/data/postmaster.pid");
    let ready = async || {
        let text = std::fs::read_to_string(&pid_file).ok()?;
        text.lines().nth(7).is_some_and(|line| line.trim() == "ready").then_some(())
    };
    eventually("the server is up", ready).await;
    parent.kill().unwrap();
    parent.wait().unwrap();
    eventually("the server is gone", async || (!pid_file.exists()).then_some(())).await;
    // Its shell ends a moment later; only then may the directory go.
    tokio::time::sleep(Duration::from_millis(200)).await;
}

#[test]
fn without_a_server_the_message_says_how_to_install_one() {
    let output = Command::new(env!("CARGO_BIN_EXE_taskbell"))
        .args(["dev", "--directory", "/nonexistent/taskbell"])
        .env_remove("DATABASE_URL")
        .env("PG_BIN", "/nonexistent")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    for expected in ["apt-get install postgresql", "dnf install postgresql-server", "brew install postgresql"]
    {
        assert!(said.contains(expected), "{said}");
    }
}
