//! A real PgBouncer between us and the database. Skipped, and saying so, where there is none,
//! unless `INTEROP=required`.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::check::Patient;
use super::cli::{run, taskbell};
use super::daemon::Running;
use super::support::cluster::owner;
use super::support::receiver::Receiver;
use super::support::{TestDatabase, eventually, scratch};

/// A pooler in front of the tests' server; it ends with the test, and with the test process.
struct Bouncer {
    shell: Child,
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let found = places.map(|place| place.join("pgbouncer")).find(|program| program.exists());
    if found.is_none() {
        assert!(std::env::var("INTEROP").as_deref() != Ok("required"), "there is no pgbouncer");
        eprintln!("skipped: there is no pgbouncer");
    }
    found
}

/// Since 1.21 it can find prepared statements again on another backend.
fn keeps_prepared(program: &Path) -> bool {
    let printed = Command::new(program).arg("--version").output().unwrap().stdout;
    let text = String::from_utf8(printed).unwrap();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    let version: (u32, u32) =
        (numbers.next().unwrap().parse().unwrap(), numbers.next().unwrap().parse().unwrap());
    version >= (1, 21)
}

impl Bouncer {
    async fn start(program: &Path, database: &TestDatabase, settings: &str) -> (Self, TestDatabase) {
        let directory = scratch("taskbell-pgbouncer-").keep();
        let (path, socket) = (directory.display(), database.dsn.split('\'').nth(1).unwrap());
        let (uid, gid) = owner(Path::new(socket));
        let config = format!(
            "[databases]\n* = host={socket} port=5432 user=postgres\n[pgbouncer]\nlisten_addr =\nlisten_port = 6432\n\
             unix_socket_dir = {path}\nauth_type = any\nlogfile = {path}/log\n{settings}\n"
        );
        let file = directory.join("pgbouncer.ini");
        std::fs::write(&file, config).unwrap();
        chown(&directory, Some(uid), Some(gid)).unwrap();
        let mut shell = Command::new("/bin/sh");
        // As root it would not start. The pipe closes when we end, however we end; asked to end by
        // itself, it would wait for its clients. Its directory goes with it.
        shell.args(["-c", SUPERVISE, "sh"]).arg(program).arg(&file).arg(&directory);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let shell = shell.uid(uid).gid(gid).current_dir("/").spawn().unwrap();
        let ready = directory.join(".s.PGSQL.6432");
        eventually("pgbouncer listens", async || ready.exists().then_some(())).await;
        let (_, name) = database.dsn.rsplit_once('=').unwrap();
        let pooled = TestDatabase::at(&format!("host={path} port=6432 user=postgres dbname={name}"));
        (Self { shell }, pooled)
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

async fn deliver(
    daemon_database: &TestDatabase,
    seller: &TestDatabase,
    environment: &[(&str, &str)],
) -> Running {
    let receiver = Receiver::start().await;
    let own = [
        ("TASKBELL_HTTP__CA_FILE", receiver.ca_file.path().to_str().unwrap()),
        ("TASKBELL_GUARD__ALLOW_PRIVATE", "true"),
        ("TASKBELL_SIGNING__KEY_FILES", "tests/vectors/ed25519-pkcs8.pem"),
    ];
    let daemon = Running::start(daemon_database, &[&own, environment].concat()).await;
    let client = seller.client().await;
    for task in ["t1", "t2", "t3"] {
        // By the simple protocol, as many sellers behind such poolers do.
        let url = receiver.url("/ok");
        let sql = format!(
            "BEGIN;
             INSERT INTO decisioning_tasks (task_id, account_id, task_type, created_at, updated_at)
             VALUES ('{task}', 'acct', 'create_media_buy', extract(epoch FROM now()), 0);
             SELECT taskbell.register_webhook('{task}', '{{\"url\":\"{url}\",\"operation_id\":\"o\"}}');
             COMMIT;
             UPDATE decisioning_tasks SET state = 'completed', result = '{{}}' WHERE task_id = '{task}'"
        );
        client.batch_execute(&sql).await.unwrap();
    }
    eventually("every webhook", async || (receiver.posts().len() == 3).then_some(())).await;
    daemon
}

#[tokio::test]
async fn a_pooler_that_refuses_our_settings_is_named_with_the_way_out() {
    let Some(program) = program() else { return };
    let database = TestDatabase::migrated().await;
    let (_bouncer, pooled) = Bouncer::start(&program, &database, "pool_mode = session").await;
    let said = run(taskbell(Some(&pooled), &["run"])).await;
    assert!(said.code == 2 && said.err.contains("ignore_startup_parameters"), "{said:?}");
}

#[tokio::test]
async fn in_session_mode_everything_works() {
    let Some(program) = program() else { return };
    let database = TestDatabase::migrated().await;
    let settings = "pool_mode = session\nignore_startup_parameters = options";
    let (_bouncer, pooled) = Bouncer::start(&program, &database, settings).await;
    // Within the test's patience only the bell tells of a webhook.
    let daemon = deliver(&pooled, &pooled, &[("TASKBELL_WORKER__SAFETY_POLL", "5m")]).await;
    eventually("readiness", async || (daemon.get("/readyz").await.0 == 200).then_some(())).await;
    Patient::of(pooled).await.found(&[DROPPED]).await;
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn in_transaction_mode_sellers_are_served_and_a_daemon_says_what_it_needs() {
    let Some(program) = program() else { return };
    let database = TestDatabase::migrated().await;
    let none = if keeps_prepared(&program) { "\nmax_prepared_statements = 0" } else { "" };
    let settings = format!("{TRANSACTIONS}{none}");
    let (_bouncer, pooled) = Bouncer::start(&program, &database, &settings).await;
    let direct = deliver(&database, &pooled, &[("TASKBELL_WORKER__SAFETY_POLL", "5m")]).await;
    assert!(direct.stop().success());
    // Again and again: what one has left prepared must not mislead the next.
    for _ in 0..5 {
        let said = run(taskbell(Some(&pooled), &["run"])).await;
        assert!(said.code == 2 && said.err.contains("forgets prepared statements"), "{said:?}");
    }
    let refuses = ("fail", "pooler", "`taskbell run` refuses to start");
    Patient::of(pooled).await.found(&[refuses]).await;
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_that_keeps_prepared_statements_is_polled_through() {
    let Some(program) = program() else { return };
    if !keeps_prepared(&program) {
        eprintln!("skipped: this pgbouncer is older than 1.21");
        return;
    }
    let database = TestDatabase::migrated().await;
    let settings = format!("{TRANSACTIONS}\nmax_prepared_statements = 100");
    let (_bouncer, pooled) = Bouncer::start(&program, &database, &settings).await;
    let daemon = deliver(&pooled, &database, &[("TASKBELL_WORKER__SAFETY_POLL", "1s")]).await;
    assert!(daemon.log().contains("loses notifications"), "{}", daemon.log());
    Patient::of(pooled).await.found(&[("fail", "pooler", "loses notifications"), DROPPED]).await;
    assert!(daemon.stop().success());
}

const SUPERVISE: &str = "\"$1\" \"$2\" </dev/null & read -r _; kill -KILL $!; wait; rm -rf \"$3\"";
const TRANSACTIONS: &str = "pool_mode = transaction\nignore_startup_parameters = options";
/// It drops what our sessions ask for.
const DROPPED: (&str, &str, &str) = ("warn", "settings", "ALTER ROLE … SET synchronous_commit = off");
