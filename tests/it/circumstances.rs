//! What may happen to a database while the daemon runs: it fails over, takes no writes, has no
//! room. `/readyz` shows it, `check` names it, nothing is lost or sent again and again, and the
//! daemon goes on by itself.

use std::time::Duration;

use taskbell::daemon::embedded::find_binaries;
use taskbell::migrations;
use tokio::process::Command;
use tokio_postgres::Client;

use super::check::{Patient, assert_found};
use super::cli::{run, taskbell};
use super::daemon::Running;
use super::support::cluster::Cluster;
use super::support::receiver::Receiver;
use super::support::{TestDatabase, complete, eventually, issue};

async fn daemon(database: &TestDatabase, receiver: &Receiver, more: &[(&str, &str)]) -> Running {
    let environment = [
        ("TASKBELL_HTTP__CA_FILE", receiver.ca_file.path().to_str().unwrap()),
        ("TASKBELL_GUARD__ALLOW_PRIVATE", "true"),
        ("TASKBELL_SIGNING__KEY_FILES", "tests/vectors/ed25519-pkcs8.pem"),
    ];
    let daemon = Running::start(database, &[&environment, more].concat()).await;
    ready(&daemon, 200).await;
    daemon
}

/// Waits for `/readyz` to answer so; what it says.
async fn ready(daemon: &Running, wanted: u16) -> String {
    eventually(&format!("/readyz {wanted}"), async || {
        let (status, says) = daemon.get("/readyz").await;
        (status == wanted).then_some(says)
    })
    .await
}

async fn migrated(dsn: &str) -> TestDatabase {
    let database = TestDatabase::at(dsn);
    migrations::apply(&mut database.client().await).await.unwrap();
    database
}

async fn has_replayed(primary: &Client, standby: &Client) {
    // Our own commits do not wait for the disk; one that does takes them with it.
    let flush = "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'test', 'flush')";
    primary.batch_execute(flush).await.unwrap();
    let row = primary.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap();
    let written: String = row.get(0);
    eventually("the standby has it", async || {
        let sql = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        standby.query_one(sql, &[&written]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_daemon_follows_to_the_standby_that_is_promoted() {
    let (primary, receiver) = (Cluster::start(&[]).await, Receiver::start().await);
    let database = migrated(&primary.dsn()).await;
    let client = database.client().await;
    let standby = primary.standby().await;
    let lone = TestDatabase::at(&standby.dsn());
    let reader = lone.client().await;
    let hosts = format!(
        "host={},{} user=postgres dbname=postgres target_session_attrs=read-write",
        primary.directory.display(),
        standby.directory.display()
    );
    let both = TestDatabase::at(&hosts);
    // Due only when the standby has long been promoted.
    let retry = [("TASKBELL_RETRY__SCHEDULE", "15s"), ("TASKBELL_RETRY__JITTER", "0")];
    let daemon = daemon(&both, &receiver, &retry).await;

    issue(&client, "owed", Some(&receiver.url("/once"))).await;
    issue(&client, "open", Some(&receiver.url("/ok"))).await;
    complete(&client, "owed").await;
    eventually("a first attempt that failed", async || {
        let sql = "SELECT FROM taskbell.outbox WHERE state = 'pending' AND attempt_count = 1";
        client.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    has_replayed(&client, &reader).await;
    primary.kill();

    let says = ready(&daemon, 503).await;
    assert!(says.contains("\"accepting\":true"), "{says}");
    assert_eq!(daemon.get("/healthz").await.0, 200, "a restart would repair nothing");
    let patient = Patient::of(lone).await;
    let named = [("fail", "primary", "target_session_attrs=read-write"), ("fail", "listener", "recovery")];
    patient.found(&named).await;
    let mut everywhere = patient.command(&[]);
    everywhere.env("DATABASE_URL", &hosts);
    assert_found(&run(everywhere).await, &[("fail", "database", "no host of database.url takes writes")]);

    assert!(reader.query_one("SELECT pg_promote()", &[]).await.unwrap().get::<_, bool>(0));
    ready(&daemon, 200).await;
    complete(&reader, "open").await;
    eventually("what was owed before, and after", async || (receiver.posts().len() == 3).then_some(())).await;
    eventually("both are settled", async || {
        let sql = "SELECT count(*) FROM taskbell.delivery WHERE state = 'delivered'";
        (reader.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 2).then_some(())
    })
    .await;
    let posts = receiver.posts();
    let twice = posts.iter().filter(|post| post.path == "/once").map(|post| post.json()).collect::<Vec<_>>();
    assert_eq!((posts.len(), twice.len()), (3, 2), "{posts:?}");
    assert_eq!(twice[0]["idempotency_key"], twice[1]["idempotency_key"]);
    let mut everywhere = patient.command(&[]);
    everywhere.env("DATABASE_URL", &hosts);
    assert_found(&run(everywhere).await, &[]);
    assert!(daemon.stop().success());
}

/// While a webhook is under way the database stops to take writes, for longer than the lease.
async fn nothing_is_sent_again(database: &TestDatabase, breaks: &[&str], repairs: &[&str]) {
    let receiver = Receiver::start().await;
    let client = database.client().await;
    // The deadline and 5 s more are the least that a lease may be.
    let times = [
        ("TASKBELL_WORKER__DEADLINE", "1s"),
        ("TASKBELL_WORKER__GRACE", "1s"),
        ("TASKBELL_WORKER__LEASE", "6s"),
        ("TASKBELL_RETRY__SCHEDULE", "1h"),
    ];
    let daemon = daemon(database, &receiver, &times).await;
    issue(&client, "under_way", Some(&receiver.url("/hang"))).await;
    issue(&client, "later", Some(&receiver.url("/ok"))).await;
    complete(&client, "under_way").await;
    eventually("it is under way", async || (receiver.posts().len() == 1).then_some(())).await;
    for statement in breaks {
        client.batch_execute(statement).await.unwrap();
    }
    let says = ready(&daemon, 503).await;
    assert!(says.contains("\"outbox\":false"), "{says}");
    let mut check = taskbell(Some(database), &["check"]);
    check.env("TASKBELL_ADMIN__LISTEN", &daemon.admin);
    let named = run(check).await;
    let line = named.out.lines().find(|line| line.starts_with("FAIL  daemon"));
    assert!(line.is_some_and(|line| line.contains("\"outbox\":false")), "{named:?}");
    assert_eq!(daemon.get("/healthz").await.0, 200, "a restart would repair nothing");
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(receiver.posts().len(), 1, "its lease is over, and it was not sent again");
    for statement in repairs {
        client.batch_execute(statement).await.unwrap();
    }
    ready(&daemon, 200).await;
    complete(&client, "later").await;
    eventually("the next one goes out", async || {
        receiver.posts().iter().any(|post| post.path == "/ok").then_some(())
    })
    .await;
    eventually("both are settled", async || {
        let sql = "SELECT FROM taskbell.outbox WHERE state = 'in_flight'
                   UNION ALL SELECT FROM taskbell.outbox WHERE task_id = 'later'";
        client.query(sql, &[]).await.unwrap().is_empty().then_some(())
    })
    .await;
    let hung = receiver.posts().iter().filter(|post| post.path == "/hang").count();
    assert!(hung <= 2, "{hung}: once more at most, when the lease was lost");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn a_database_that_turns_read_only_is_waited_for() {
    let cluster = Cluster::start(&[]).await;
    let database = migrated(&cluster.dsn()).await;
    nothing_is_sent_again(
        &database,
        &["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"],
        &["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"],
    )
    .await;
}

#[tokio::test]
async fn a_disk_without_room_is_waited_for() {
    let database = TestDatabase::migrated().await;
    nothing_is_sent_again(&database, &[DISK_FULL], &[ROOM_AGAIN]).await;
}

#[tokio::test]
async fn a_dump_that_is_restored_elsewhere_owes_what_it_owed() {
    let (original, copy) = (TestDatabase::migrated().await, TestDatabase::empty().await);
    let (client, receiver) = (original.client().await, Receiver::start().await);
    for task in ["ended", "open"] {
        issue(&client, task, Some(&receiver.url("/ok"))).await;
    }
    complete(&client, "ended").await;
    let programs = find_binaries().unwrap();
    let mut dump = Command::new(programs.join("pg_dump"));
    let dumped = dump.arg("--dbname").arg(&original.dsn).output().await.unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), dumped.stdout).unwrap();
    let mut restore = Command::new(programs.join("psql"));
    restore.args(["--quiet", "--set=ON_ERROR_STOP=1", "--no-psqlrc", "--file"]).arg(file.path());
    let restored = restore.arg("--dbname").arg(&copy.dsn).output().await.unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));

    let daemon = daemon(&copy, &receiver, &[]).await;
    complete(&copy.client().await, "open").await;
    eventually("both webhooks", async || (receiver.posts().len() == 2).then_some(())).await;
    Patient::of(copy).await.found(&[]).await;
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn prepared_transactions_and_slots_without_a_consumer_are_named() {
    let cluster = Cluster::start(&[
        "max_prepared_transactions=2",
        "hot_standby_feedback=on",
        "wal_receiver_status_interval=1s",
    ])
    .await;
    let patient = Patient::of(migrated(&cluster.dsn()).await).await;
    let client = TestDatabase::at(&cluster.dsn()).client().await;
    patient.found(&[]).await;
    client.batch_execute("BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'two o''clock'").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let at_once = ["--long-transactions", "10ms"];
    let named = ("warn", "transactions", "ROLLBACK PREPARED 'two o''clock' in database postgres");
    assert_found(&run(patient.command(&at_once)).await, &[named]);
    client.batch_execute("ROLLBACK PREPARED 'two o''clock'").await.unwrap();
    assert_found(&run(patient.command(&at_once)).await, &[]);

    let standby = cluster.standby().await;
    let reader = TestDatabase::at(&standby.dsn()).client().await;
    reader
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
        .await
        .unwrap();
    eventually("the slot holds rows", async || {
        client.query_opt("SELECT FROM pg_replication_slots WHERE xmin IS NOT NULL", &[]).await.unwrap()
    })
    .await;
    patient.found(&[]).await;
    drop(standby);
    eventually("its consumer is away", async || {
        client.query_opt("SELECT FROM pg_replication_slots WHERE NOT active", &[]).await.unwrap()
    })
    .await;
    patient.found(&[("warn", "slots", "SELECT pg_drop_replication_slot('standby')")]).await;
}

const DISK_FULL: &str = "CREATE FUNCTION public.disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
END $$;
CREATE TRIGGER disk_full BEFORE UPDATE OR DELETE ON taskbell.outbox FOR EACH STATEMENT EXECUTE FUNCTION public.disk_full();
CREATE TRIGGER disk_full BEFORE INSERT ON taskbell.transition FOR EACH STATEMENT EXECUTE FUNCTION public.disk_full();
CREATE TRIGGER disk_full BEFORE INSERT ON taskbell.attempt FOR EACH STATEMENT EXECUTE FUNCTION public.disk_full()";
const ROOM_AGAIN: &str = "DROP FUNCTION public.disk_full() CASCADE";
