//! The private server: keeps its data, never outlives whoever started it, and touches nothing
//! that is not its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use taskbell::daemon::embedded::{self, EmbeddedError, EmbeddedOptions, EmbeddedPostgres};
use tokio_postgres::NoTls;

use super::support::{eventually, scratch};

fn options(directory: &Path) -> EmbeddedOptions {
    EmbeddedOptions {
        directory: directory.to_owned(),
        durable: false,
        port: None,
        remove_after: false,
        settings: Vec::new(),
    }
}

async fn start(options: EmbeddedOptions) -> Result<EmbeddedPostgres, EmbeddedError> {
    tokio::task::spawn_blocking(move || EmbeddedPostgres::start(&options)).await.unwrap()
}

async fn stop(server: EmbeddedPostgres) {
    tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
}

/// What a server answers to one query that yields a number.
async fn ask(server: &EmbeddedPostgres, setup: &str, query: &str) -> i64 {
    let (client, connection) = tokio_postgres::connect(&server.dsn("postgres"), NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute(setup).await.unwrap();
    let answer = client.query_one(query, &[]).await.unwrap().get(0);
    drop(client);
    let _ = connection.await;
    answer
}

fn is_ready(lock_file: &Path) -> bool {
    let text = fs::read_to_string(lock_file).unwrap_or_default();
    text.lines().nth(7).is_some_and(|line| line.trim() == "ready")
}

#[tokio::test]
async fn data_is_kept_between_runs() {
    let parent = scratch("taskbell-embedded-");
    let directory = parent.path().join("a seller's \"own\"");
    for run in 1..=2 {
        let server = start(options(&directory)).await.unwrap();
        let setup = "CREATE TABLE IF NOT EXISTS t (run int); INSERT INTO t VALUES (0)";
        assert_eq!(ask(&server, setup, "SELECT count(*) FROM t").await, run);
        stop(server).await;
        assert!(!directory.join("data/postmaster.pid").exists());
    }
}

#[tokio::test]
async fn a_throwaway_server_takes_its_directory_with_it() {
    let parent = scratch("taskbell-embedded-");
    // Its own level: the server's user may remove what it owns only from where it may write.
    let shared = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(parent.path(), shared).unwrap();
    let directory = parent.path().join("pg");
    let server = start(EmbeddedOptions { remove_after: true, ..options(&directory) }).await.unwrap();
    assert!(directory.join("data").exists());
    stop(server).await;
    assert!(!directory.exists());
}

#[tokio::test]
async fn the_server_stops_when_its_parent_is_killed() {
    let parent = scratch("taskbell-embedded-");
    let lock_file = parent.path().join("pg/data/postmaster.pid");
    let mut dev = Command::new(env!("CARGO_BIN_EXE_taskbell"))
        .args(["dev", "--directory"])
        .arg(parent.path().join("pg"))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the server is up", async || is_ready(&lock_file).then_some(())).await;
    dev.kill().unwrap();
    dev.wait().unwrap();
    eventually("the server is gone", async || (!lock_file.exists()).then_some(())).await;
}

#[tokio::test]
async fn a_lock_file_whose_process_is_now_somebody_elses_harms_nobody() {
    let parent = scratch("taskbell-embedded-");
    let (theirs, ours) = (parent.path().join("theirs"), parent.path().join("ours"));
    let neighbour = start(options(&theirs)).await.unwrap();
    stop(start(options(&ours)).await.unwrap()).await;
    // As after a power cut: the file says `ready`, and its number has been given out again.
    fs::copy(theirs.join("data/postmaster.pid"), ours.join("data/postmaster.pid")).unwrap();
    let server = start(options(&ours)).await.unwrap();
    for server in [&server, &neighbour] {
        assert_eq!(ask(server, "", "SELECT 1::bigint").await, 1);
    }
    stop(server).await;
    stop(neighbour).await;
}

#[tokio::test]
async fn a_directory_that_another_run_uses_is_left_to_it() {
    let parent = scratch("taskbell-embedded-");
    let directory = parent.path().join("pg");
    let first = start(options(&directory)).await.unwrap();
    let second = start(options(&directory)).await;
    assert!(matches!(second, Err(EmbeddedError::InUse { .. })), "{second:?}");
    let cleared = tokio::task::spawn_blocking(move || embedded::clear(&directory)).await.unwrap();
    assert!(matches!(cleared, Err(EmbeddedError::InUse { .. })), "{cleared:?}");
    assert_eq!(ask(&first, "", "SELECT 1::bigint").await, 1);
    stop(first).await;
}

#[tokio::test]
async fn a_directory_with_other_things_in_it_is_neither_used_nor_cleared() {
    let parent = scratch("taskbell-embedded-");
    let letter = parent.path().join("letter.txt");
    fs::write(&letter, "keep me").unwrap();
    let started = start(options(parent.path())).await;
    assert!(matches!(started, Err(EmbeddedError::NotOurs(_))), "{started:?}");
    let cleared = embedded::clear(parent.path());
    assert!(matches!(cleared, Err(EmbeddedError::NotOurs(_))), "{cleared:?}");
    assert_eq!(fs::read_to_string(&letter).unwrap(), "keep me");
}

#[tokio::test]
async fn clearing_removes_a_stopped_server_whole() {
    let parent = scratch("taskbell-embedded-");
    let directory = parent.path().join("pg");
    stop(start(options(&directory)).await.unwrap()).await;
    embedded::clear(&directory).unwrap();
    assert!(!directory.exists());
    embedded::clear(&directory).unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_in_the_servers_words() {
    let parent = scratch("taskbell-embedded-");
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = Some(taken.local_addr().unwrap().port());
    let started = start(EmbeddedOptions { port, ..options(&parent.path().join("pg")) }).await;
    assert!(
        matches!(&started, Err(EmbeddedError::Start(said)) if said.contains("could not bind") || said.contains("could not create any TCP/IP sockets")),
        "{started:?}"
    );
}

#[tokio::test]
async fn data_of_another_major_version_is_refused_and_kept() {
    let parent = scratch("taskbell-embedded-");
    let directory = parent.path().join("pg");
    stop(start(options(&directory)).await.unwrap()).await;
    fs::write(directory.join("data/PG_VERSION"), "9\n").unwrap();
    let error = start(options(&directory)).await.unwrap_err();
    assert!(matches!(&error, EmbeddedError::OtherVersion { kept, .. } if kept == "9"), "{error:?}");
    assert!(error.to_string().contains("--fresh"), "{error}");
    assert!(directory.join("data/base").exists());
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
