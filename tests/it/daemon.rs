//! The daemon as an operator starts it: one process, from exec to a clean stop.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::support::{Shared, TestDatabase, complete, eventually, issue};

pub struct Running {
    child: Child,
    pub admin: String,
    log: Shared<String>,
}

impl Running {
    pub async fn start(database: &TestDatabase, environment: &[(&str, &str)]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_taskbell")), database, environment).await
    }

    /// By a command that runs it with the arguments that follow.
    async fn start_by(mut command: Command, database: &TestDatabase, environment: &[(&str, &str)]) -> Self {
        command.env_clear().arg("run").env("DATABASE_URL", &database.dsn);
        command.env("TASKBELL_ADMIN__LISTEN", "127.0.0.1:0");
        command.env("TASKBELL_METRICS__REFRESH", "1s").env("TASKBELL_LOG__FORMAT", "json");
        command.envs(environment.iter().copied()).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log: Shared<String> = Shared::default();
        let kept = log.clone();
        let admin = tokio::task::spawn_blocking(move || {
            let keep = move |line: &String| kept.lock().unwrap().push_str(line);
            let mut lines = lines.map_while(Result::ok).inspect(keep);
            let line = lines.find(|line| line.contains("taskbell runs")).unwrap();
            // The rest must be read, or the daemon blocks when the pipe is full.
            std::thread::spawn(move || lines.for_each(drop));
            serde_json::from_str::<Value>(&line).unwrap()["admin"].as_str().unwrap().to_owned()
        })
        .await
        .unwrap();
        Self { child, admin, log }
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The same, also of what it is yet to log.
    pub fn log_later(&self) -> Shared<String> {
        self.log.clone()
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("http://{}{path}", self.admin)).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// Freezes the process, or lets it go on.
    pub fn signal(&self, name: &str) {
        Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
    }

    /// As if the machine had gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn stop(mut self) -> std::process::ExitStatus {
        self.signal("TERM");
        self.child.wait().unwrap()
    }
}

/// A new signing key's file, in this directory.
pub fn signing_key(directory: &std::path::Path) -> String {
    let path = directory.join("key.jwk").to_str().unwrap().to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskbell"));
    assert!(command.env_clear().args(["keys", "generate", &path]).output().unwrap().status.success());
    path
}

/// A test that fails leaves no daemon behind.
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn it_becomes_ready_measures_tasks_and_stops_cleanly() {
    let database = TestDatabase::migrated().await;
    let daemon = Running::start(&database, &[("TASKBELL_METRICS__SLA__CREATE_MEDIA_BUY", "1s")]).await;
    assert_eq!(daemon.get("/healthz").await.0, 200);
    eventually("readiness", async || (daemon.get("/readyz").await.0 == 200).then_some(())).await;
    let client = database.client().await;
    issue(&client, "task_done", None).await;
    client.batch_execute("UPDATE decisioning_tasks SET state = 'working'").await.unwrap();
    complete(&client, "task_done").await;
    issue(&client, "task_open", None).await;
    client
        .batch_execute("UPDATE decisioning_tasks SET created_at = created_at - 60 WHERE state = 'submitted'")
        .await
        .unwrap();
    let metrics = eventually("the metrics of the tasks", async || {
        let (_, text) = daemon.get("/metrics").await;
        let expected = [
            "taskbell_task_duration_seconds_count{task_type=\"create_media_buy\",outcome=\"completed\"} 1",
            "taskbell_task_state_seconds_count{task_type=\"create_media_buy\",state=\"submitted\"} 1",
            "taskbell_task_state_seconds_count{task_type=\"create_media_buy\",state=\"working\"} 1",
            "taskbell_tasks_open{task_type=\"create_media_buy\",state=\"submitted\"} 1",
            "taskbell_tasks_over_sla{task_type=\"create_media_buy\"} 1",
            "taskbell_listener_up 1",
            "taskbell_deliveries_total{result=\"delivered\"} 0",
            "taskbell_leases_lost_total 0",
        ];
        expected.iter().all(|line| text.lines().any(|found| found == *line)).then_some(text)
    })
    .await;
    assert!(!metrics.contains("task_done") && !metrics.contains("acct"));
    let (status, jwks) = daemon.get("/.well-known/jwks.json").await;
    assert_eq!((status, jwks.as_str()), (200, "{\"keys\":[]}"));
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn it_may_open_as_many_files_as_its_connections_need_or_says_that_it_may_not() {
    let database = TestDatabase::migrated().await;
    // What it may have at first, what it has then, and whether that is too few.
    for (limit, open, too_few) in [("-Sn 100", 704, false), ("-n 100", 100, true), ("-Sn 800", 800, false)] {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_taskbell")]);
        let daemon = Running::start_by(shell, &database, &[("TASKBELL_WORKER__CONCURRENCY", "384")]).await;
        eventually("its limit", async || {
            let (_, text) = daemon.get("/metrics").await;
            text.lines().any(|line| line == format!("process_max_fds {open}")).then_some(())
        })
        .await;
        let says = daemon.log().contains("this process may open 100 files, and");
        assert_eq!(says, too_few, "{limit}: {}", daemon.log());
        assert!(daemon.stop().success());
    }
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_every_fault_by_name() {
    let output = Command::new(env!("CARGO_BIN_EXE_taskbell"))
        .env_clear()
        .arg("run")
        .env("ADCP_ENV", "production")
        .env("TASKBELL_WORKER__LEASE", "10s")
        .env("TASKBELL_GUARD__ALLOW_PRIVATE", "true")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    for key in ["worker.deadline", "worker.grace", "guard.allow_private", "signing.key_files"] {
        assert!(said.contains(key), "{key}: {said}");
    }
}

#[tokio::test]
async fn tasks_that_nobody_decides_are_named_once_and_failed_where_the_policy_says_so() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    for id in ["task_late", "task_very_late", "task_new"] {
        issue(&client, id, None).await;
    }
    client
        .batch_execute(
            "UPDATE decisioning_tasks SET created_at = created_at - 7200 WHERE task_id = 'task_late';
             UPDATE decisioning_tasks SET created_at = created_at - 86400 WHERE task_id = 'task_very_late';
             INSERT INTO decisioning_tasks (task_id, account_id, task_type, state, created_at, updated_at)
             SELECT 'task_gone_' || n, 'acct', 'create_media_buy', 'canceled', 1700000000, 0
             FROM generate_series(1, 200) AS n;
             -- Older than all others, and a seller's own rule keeps them open.
             INSERT INTO decisioning_tasks (task_id, account_id, task_type, state, created_at, updated_at)
             SELECT 'task_kept_' || n, 'acct', 'create_media_buy', 'working', 1600000000, 0
             FROM generate_series(1, 120) AS n;
             ALTER TABLE decisioning_tasks ADD CONSTRAINT kept CHECK (task_id NOT LIKE 'task_kept_%' OR state = 'working');
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = 'TB001'; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE ON decisioning_tasks FOR EACH ROW WHEN (OLD.task_id = 'task_kept_7')
             EXECUTE FUNCTION refuse()",
        )
        .await
        .unwrap();
    let environment = [
        ("TASKBELL_METRICS__SLA__CREATE_MEDIA_BUY", "1h"),
        ("TASKBELL_TASKS__FAIL_AFTER__CREATE_MEDIA_BUY", "12h"),
        ("TASKBELL_DATABASE__STATEMENT_TIMEOUT", "1s"),
    ];
    // Somebody forgot a transaction.
    let mut forgotten = database.client().await;
    let forgotten = forgotten.transaction().await.unwrap();
    let lock = "SELECT FROM decisioning_tasks WHERE task_id = 'task_kept_1' FOR UPDATE";
    forgotten.query_one(lock, &[]).await.unwrap();
    let daemon = Running::start(&database, &environment).await;
    let failed = eventually("the failed task", async || {
        let sql = "SELECT error FROM decisioning_tasks WHERE task_id = 'task_very_late' AND state = 'failed'";
        client.query_opt(sql, &[]).await.unwrap().map(|row| row.get::<_, Value>(0))
    })
    .await;
    assert_eq!(failed["code"], "TASK_TIMEOUT");
    assert!(failed["message"].as_str().unwrap().contains("12h"));
    eventually("a line about the late one", async || {
        (daemon.log().matches("\"task.id\":\"task_late\"").count() == 1).then_some(())
    })
    .await;
    let named = |task: &str| daemon.log().matches(&format!("\"task.id\":\"{task}\",\"problem\"")).count();
    let named = ["task_kept_1", "task_kept_7", "task_kept_120"].map(named);
    assert_eq!(named, [0, 1, 1], "each is tried and named once, but for what is locked");
    forgotten.rollback().await.unwrap();
    assert!(daemon.stop().success());
    // Another process says nothing new of it.
    let again = Running::start(&database, &environment).await;
    eventually("a few looks", async || {
        again
            .get("/metrics")
            .await
            .1
            .contains("taskbell_tasks_over_sla{task_type=\"create_media_buy\"} 121")
            .then_some(())
    })
    .await;
    assert!(!again.log().contains("task_late") && !again.log().contains("task_new"));
    assert!(again.stop().success());
}

#[tokio::test]
async fn a_database_that_takes_no_writes_makes_it_unready_until_it_does() {
    let database = TestDatabase::migrated().await;
    let daemon = Running::start(&database, &[]).await;
    let ready = async |wanted: u16| {
        eventually("readiness", async || (daemon.get("/readyz").await.0 == wanted).then_some(())).await;
    };
    ready(200).await;
    let client = database.client().await;
    // What a failover to a standby does, or a disk that ran full: sessions are cut, writes fail.
    let name = client.query_one("SELECT current_database()::text", &[]).await.unwrap().get::<_, String>(0);
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'taskbell'";
    client
        .batch_execute(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on"))
        .await
        .unwrap();
    client.batch_execute(cut).await.unwrap();
    eventually("the outbox is named", async || {
        let (status, says) = daemon.get("/readyz").await;
        (status == 503 && says.contains("\"outbox\":false")).then_some(())
    })
    .await;
    assert_eq!(daemon.get("/healthz").await.0, 200, "a restart would repair nothing");
    let client = super::support::TestDatabase::at(&format!(
        "{} options='-c default_transaction_read_only=off'",
        database.dsn
    ))
    .client()
    .await;
    client
        .batch_execute(&format!("ALTER DATABASE {name} RESET default_transaction_read_only"))
        .await
        .unwrap();
    client.batch_execute(cut).await.unwrap();
    ready(200).await;
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn a_daemon_and_a_schema_that_do_not_fit_say_so_and_what_to_do() {
    for (change, says) in [
        (
            "INSERT INTO taskbell.schema_version (version, name) VALUES (99, 'of tomorrow')",
            "use a newer build",
        ),
        ("DELETE FROM taskbell.schema_version WHERE version = 5", "run `taskbell migrate`"),
        ("DROP SCHEMA taskbell CASCADE", "run `taskbell migrate`"),
    ] {
        let database = TestDatabase::migrated().await;
        database.client().await.batch_execute(change).await.unwrap();
        let said = super::cli::run(super::cli::taskbell(Some(&database), &["run"])).await;
        assert!(said.code != 0 && said.err.contains(says), "{said:?}");
    }
}
