//! `taskbell check`: each thing that can be wrong is made wrong, and named with what to do.

use serde_json::Value;
use tokio::process::Command;
use tokio_postgres::Client;

use super::cli::{Said, run, taskbell};
use super::support::receiver::Receiver;
use super::support::{TestDatabase, complete, eventually, issue};

/// One database with everything in order, and its keys.
pub struct Patient {
    pub database: TestDatabase,
    client: Client,
    directory: tempfile::TempDir,
}

impl Patient {
    async fn well() -> Self {
        Self::of(TestDatabase::migrated().await).await
    }

    /// The same, of a database that has the schema.
    pub async fn of(database: TestDatabase) -> Self {
        let patient =
            Self { client: database.client().await, database, directory: tempfile::tempdir().unwrap() };
        for (file, more) in [("key.jwk", [].as_slice()), ("seal.jwk", &["--sealing", "--kid", "seal-1"])] {
            let path = patient.path(file);
            let arguments = [&["keys", "generate", &path], more].concat();
            assert_eq!(run(taskbell(None, &arguments)).await.code, 0);
        }
        patient
    }

    fn path(&self, file: &str) -> String {
        self.directory.path().join(file).to_str().unwrap().to_owned()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = taskbell(Some(&self.database), &[&["check", "--json"], arguments].concat());
        command.env("TASKBELL_SIGNING__KEY_FILES", self.path("key.jwk"));
        command.env("TASKBELL_SEALING__KEY_FILES", self.path("seal.jwk"));
        // No daemon of this machine's is asked.
        command.env("TASKBELL_ADMIN__LISTEN", "127.0.0.1:1");
        command
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// Fails unless exactly this is found beside what is well.
    pub async fn found(&self, expected: &[(&str, &str, &str)]) {
        assert_found(&run(self.command(&[])).await, expected);
    }
}

/// Severity, check, and a part of the line, of everything that is not ok. The cluster of the tests
/// runs without fsync and most of these databases without a daemon, which are no findings here.
pub fn assert_found(said: &Said, expected: &[(&str, &str, &str)]) {
    let findings = said.documents().remove(0);
    let findings: Vec<&Value> = findings.as_array().unwrap().iter().collect();
    let text = |finding: &Value, member: &str| finding[member].as_str().unwrap_or_default().to_owned();
    let expected_here = |finding: &Value| {
        text(finding, "says").starts_with("fsync is off") || text(finding, "says").starts_with(NO_DAEMON)
    };
    let lines: Vec<(String, String, String)> = findings
        .iter()
        .filter(|finding| finding["severity"] != "ok" && !expected_here(finding))
        .map(|finding| {
            let line = format!("{}; {}", text(finding, "says"), text(finding, "remedy"));
            (text(finding, "severity"), text(finding, "check"), line)
        })
        .collect();
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for ((severity, check, line), (wanted, of, part)) in lines.iter().zip(expected) {
        assert_eq!((severity.as_str(), check.as_str()), (*wanted, *of), "{lines:#?}");
        assert!(line.contains(part), "{line}");
    }
    let fails = expected.iter().any(|(severity, ..)| *severity == "fail");
    assert_eq!(said.code, i32::from(fails), "{said:?}");
}

const NO_DAEMON: &str = "none listens on this database";

#[tokio::test]
async fn a_database_that_no_daemon_serves_is_named() {
    let patient = Patient::well().await;
    let daemon = async || {
        let said = run(patient.command(&[])).await;
        assert_eq!(said.code, 0, "{said:?}");
        let findings = said.documents().remove(0);
        let mut findings = findings.as_array().unwrap().iter().filter(|finding| finding["check"] == "daemon");
        let found = findings.find(|finding| finding["says"].as_str().unwrap().contains("this database"));
        let found = found.unwrap_or_else(|| panic!("{said:?}"));
        (found["severity"].as_str().unwrap().to_owned(), found["says"].as_str().unwrap().to_owned())
    };
    let (severity, says) = daemon().await;
    assert!(severity == "warn" && says.starts_with(NO_DAEMON), "{says}");
    let ear = patient.database.client().await;
    ear.batch_execute("LISTEN taskbell").await.unwrap();
    assert_eq!(daemon().await, ("ok".to_owned(), "one listens on this database".to_owned()));
    ear.batch_execute("SELECT pg_advisory_lock(8386110886190083180)").await.unwrap();
    assert_eq!(daemon().await, ("ok".to_owned(), "one is awake on this database".to_owned()));
}

#[tokio::test]
async fn a_webhook_that_is_due_for_long_fails_unless_its_circuit_is_closed_and_dead_letters_warn() {
    let patient = Patient::well().await;
    for task in ["t1", "t2", "t3"] {
        issue(&patient.client, task, Some("https://buyer.example/hook")).await;
        complete(&patient.client, task).await;
    }
    patient.found(&[]).await;
    patient.sql("UPDATE taskbell.outbox SET available_at = now() - interval '6 minutes' WHERE task_id = 't1' AND lane IS NOT NULL").await;
    let late = ("fail", "webhooks", "3 owed, and one has been due for 6m");
    patient.found(&[late]).await;
    let circuit = "INSERT INTO taskbell.circuit (lane, account_id, failures, closed_until, last_reason)
                   VALUES ('https://buyer.example:443', 'acct', 5, now() + interval '3 minutes', 'connect')";
    patient.sql(circuit).await;
    patient.found(&[]).await;
    // Its time has come to be probed, but a moment ago only.
    patient.sql("UPDATE taskbell.circuit SET closed_until = now() - interval '1 minute'").await;
    patient.found(&[]).await;
    patient.sql("UPDATE taskbell.circuit SET closed_until = NULL, recovered = 3").await;
    patient.found(&[]).await;
    patient.sql("DELETE FROM taskbell.circuit").await;
    patient.found(&[late]).await;
    patient.sql("UPDATE taskbell.outbox SET state = 'in_flight', lease_token = gen_random_uuid(), lease_expires_at = now() + interval '1 minute' WHERE task_id = 't1' AND lane IS NOT NULL").await;
    patient.found(&[]).await;
    for (task, state) in [("t2", "invalid"), ("t3", "expired")] {
        patient.sql(&format!("UPDATE taskbell.outbox SET state = '{state}', available_at = NULL, last_reason = 'gone' WHERE task_id = '{task}' AND lane IS NOT NULL")).await;
    }
    patient
        .found(&[
            ("warn", "dead letters", "1 invalid; `taskbell deliveries list --state invalid`"),
            ("warn", "dead letters", "1 expired; `taskbell deliveries list --state expired`"),
        ])
        .await;
}

#[tokio::test]
async fn in_production_it_asks_where_the_keys_are_published() {
    let patient = Patient::well().await;
    let mut command = patient.command(&[]);
    command.env("ADCP_ENV", "production");
    assert_found(&run(command).await, &[("warn", "published keys", "signing.jwks_uri is not set")]);
}

#[tokio::test]
async fn it_says_what_to_do_until_all_is_well() {
    let patient = Patient::well().await;
    patient.found(&[]).await;
    let lines = run(taskbell(Some(&patient.database), &["check"])).await;
    for line in [
        "ok    database       PostgreSQL ",
        "FAIL  signing key    signing.key_files: no key signs now",
        "WARN  sealing key",
    ] {
        assert!(lines.out.contains(line), "{}", lines.out);
    }
    patient.sql("DROP SCHEMA taskbell CASCADE; DROP TABLE decisioning_tasks").await;
    patient.found(&[("fail", "schema", "run `taskbell migrate`")]).await;
    assert_eq!(run(taskbell(Some(&patient.database), &["migrate"])).await.code, 0);
    patient.found(&[]).await;
    patient.sql("INSERT INTO taskbell.schema_version (version, name) VALUES (99, 'of tomorrow')").await;
    patient.found(&[("fail", "schema", "use a newer build")]).await;
}

#[tokio::test]
async fn warnings_fail_only_when_it_is_strict_and_a_wrong_word_is_neither() {
    let patient = Patient::well().await;
    for (arguments, code) in [([].as_slice(), 0), (&["--strict"], 1), (&["--stern"], 2)] {
        // Without fsync, as the tests' cluster is, there is a warning.
        assert_eq!(run(patient.command(arguments)).await.code, code, "{arguments:?}");
    }
}

#[tokio::test]
async fn each_missing_grant_is_named_and_what_it_asks_for_is_all_that_a_daemon_needs() {
    let mut patient = Patient::well().await;
    let owner = patient.database.client().await;
    owner.batch_execute("CREATE ROLE doctor_daemon LOGIN").await.unwrap();
    owner.batch_execute("REVOKE USAGE ON SCHEMA taskbell FROM PUBLIC").await.unwrap();
    owner.batch_execute("GRANT pg_read_all_stats TO doctor_daemon").await.unwrap();
    patient.database = TestDatabase::at(&patient.database.dsn.replace("user=postgres", "user=doctor_daemon"));
    // Three times: what stands in a table that cannot be read yet comes later.
    for round in 0..3 {
        let said = run(patient.command(&[])).await;
        let findings = said.documents().remove(0);
        let remedies = findings.as_array().unwrap().iter().filter(|finding| finding["check"] == "grants");
        let remedies = remedies.filter_map(|finding| finding["remedy"].as_str()).collect::<Vec<_>>();
        assert!(round > 0 || remedies.len() > 10, "{said:?}");
        for grant in remedies {
            owner.batch_execute(grant).await.unwrap();
        }
    }
    patient.found(&[]).await;
    let receiver = Receiver::start().await;
    let environment = [
        ("TASKBELL_HTTP__CA_FILE", receiver.ca_file.path().to_str().unwrap()),
        ("TASKBELL_GUARD__ALLOW_PRIVATE", "true"),
        ("TASKBELL_SIGNING__KEY_FILES", &patient.path("key.jwk")),
        ("TASKBELL_SEALING__KEY_FILES", &patient.path("seal.jwk")),
        ("TASKBELL_RETRY__SCHEDULE", "100ms"),
    ];
    let daemon = super::daemon::Running::start(&patient.database, &environment).await;
    for (task, path) in [("t1", "/ok"), ("t2", "/once")] {
        issue(&owner, task, Some(&receiver.url(path))).await;
        complete(&owner, task).await;
    }
    eventually("every webhook, at last", async || (receiver.posts().len() == 3).then_some(())).await;
    eventually("gauges", async || {
        daemon.get("/metrics").await.1.contains("taskbell_gauges_refreshed_timestamp_seconds").then_some(())
    })
    .await;
    assert!(!daemon.log().contains("permission denied"), "{}", daemon.log());
    assert!(daemon.stop().success());
    for (revoked, names) in [
        ("DELETE ON taskbell.outbox", "GRANT DELETE ON taskbell.outbox TO doctor_daemon"),
        ("SELECT ON decisioning_tasks", "GRANT SELECT ON decisioning_tasks TO doctor_daemon"),
        (
            "EXECUTE ON FUNCTION taskbell.create_partitions(integer)",
            "GRANT EXECUTE ON FUNCTION taskbell.create_partitions(integer) TO doctor_daemon",
        ),
    ] {
        owner.batch_execute(&format!("REVOKE {revoked} FROM doctor_daemon")).await.unwrap();
        patient.found(&[("fail", "grants", names)]).await;
        owner.batch_execute(&format!("GRANT {revoked} TO doctor_daemon")).await.unwrap();
    }
    owner.batch_execute("REVOKE pg_read_all_stats FROM doctor_daemon").await.unwrap();
    patient.found(&[("warn", "transactions", "GRANT pg_read_all_stats")]).await;
    let mut failing = patient.command(&[]);
    failing.env("TASKBELL_TASKS__FAIL_AFTER__CREATE_MEDIA_BUY", "1d");
    let update = ("fail", "grants", "GRANT UPDATE ON decisioning_tasks TO doctor_daemon");
    assert_found(&run(failing).await, &[("warn", "transactions", ""), update]);
    owner.batch_execute("ALTER ROLE doctor_daemon CONNECTION LIMIT 5").await.unwrap();
    patient
        .found(&[("warn", "connections", "connection limit of the role"), ("warn", "transactions", "")])
        .await;
    owner.batch_execute("DROP OWNED BY doctor_daemon; DROP ROLE doctor_daemon").await.unwrap();
}

#[tokio::test]
async fn triggers_that_would_not_fire_are_named() {
    let patient = Patient::well().await;
    let again = ("fail", "triggers", "`taskbell watch add decisioning_tasks --profile adcp-python`");
    patient.sql("ALTER TABLE decisioning_tasks DISABLE TRIGGER taskbell_record").await;
    patient.found(&[again]).await;
    patient.sql("ALTER TABLE decisioning_tasks ENABLE TRIGGER taskbell_record").await;
    patient.found(&[]).await;
    patient.sql("DROP TRIGGER taskbell_record ON decisioning_tasks").await;
    patient.found(&[again]).await;
    patient.sql("DROP TABLE decisioning_tasks").await;
    patient.found(&[("warn", "triggers", "DELETE FROM taskbell.watched_table WHERE relation =")]).await;
    patient.sql("TRUNCATE taskbell.watched_table").await;
    patient.found(&[("fail", "triggers", "no table is watched")]).await;
}

#[tokio::test]
async fn settings_of_the_database_that_hurt_are_named() {
    let patient = Patient::well().await;
    let name = patient.client.query_one("SELECT current_database()::text", &[]).await.unwrap();
    let name = name.get::<_, String>(0);
    for (setting, expected) in [
        ("default_transaction_isolation = 'repeatable read'", ("warn", "settings", "read committed")),
        ("session_replication_role = replica", ("fail", "settings", "RESET session_replication_role")),
    ] {
        patient.sql(&format!("ALTER DATABASE {name} SET {setting}")).await;
        patient.found(&[expected]).await;
        patient.sql(&format!("ALTER DATABASE {name} RESET ALL")).await;
    }
    patient.sql(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
    patient.found(&[("fail", "primary", "default_transaction_read_only")]).await;
    // As a pooler that drops what a session asks for.
    let mut patient = Patient::well().await;
    patient.database.dsn.push_str(" options='-c plan_cache_mode=auto'");
    patient.found(&[("warn", "settings", "plan_cache_mode = force_generic_plan")]).await;
}

#[tokio::test]
async fn who_holds_a_transaction_open_is_named_with_how_to_end_it() {
    let patient = Patient::well().await;
    let mut holder = patient.database.client().await;
    let transaction = holder.transaction().await.unwrap();
    let pid: i32 = transaction.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    transaction.batch_execute("SET LOCAL application_name = 'a report that \"takes\" long'").await.unwrap();
    let says = format!(r#"pid {pid} (postgres, application "a report that \"takes\" long", from a socket)"#);
    let ends = format!("pg_terminate_backend({pid})");
    let named = eventually("a second has passed", async || {
        let said = run(patient.command(&["--long-transactions", "1s"])).await;
        said.out.contains(&ends).then_some(said)
    })
    .await;
    let findings = named.documents().remove(0);
    let mine = findings
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["remedy"].as_str().is_some_and(|remedy| remedy.contains(&ends)));
    let mine = mine.unwrap();
    assert!(mine["severity"] == "warn" && mine["says"].as_str().unwrap().starts_with(&says), "{mine}");
    patient.found(&[]).await;
    transaction.rollback().await.unwrap();
    let after = run(patient.command(&["--long-transactions", "1s"])).await;
    assert!(!after.out.contains(&ends), "{after:?}");
}

#[tokio::test]
async fn a_hot_table_that_nobody_vacuums_is_named() {
    let patient = Patient::well().await;
    patient.sql("ALTER TABLE taskbell.outbox SET (autovacuum_enabled = false)").await;
    patient.found(&[("warn", "outbox table", "RESET (autovacuum_enabled)")]).await;
    let rows = "INSERT INTO taskbell.outbox (watch_id, task_id, task_type, to_state)
                SELECT 1, 'gone', 'create_media_buy', 'working' FROM generate_series(1, 21000)";
    patient.sql(rows).await;
    patient.sql("DELETE FROM taskbell.outbox").await;
    // Not in one batch: autovacuum must not come before it is counted.
    eventually("dead rows are counted and named", async || {
        let said = run(patient.command(&[])).await;
        said.out.contains("0 rows and 21000 dead ones").then_some(())
    })
    .await;
    patient.sql("VACUUM taskbell.outbox").await;
    patient.sql("ALTER TABLE taskbell.outbox RESET (autovacuum_enabled)").await;
    patient.found(&[]).await;
}

#[tokio::test]
async fn days_without_a_partition_and_rows_that_found_none_are_named() {
    let patient = Patient::well().await;
    let today = "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD'), to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')";
    let row = patient.client.query_one(today, &[]).await.unwrap();
    let (suffix, day): (String, String) = (row.get(0), row.get(1));
    patient.sql(&format!("DROP TABLE taskbell.attempt_{suffix}")).await;
    patient.found(&[("warn", "partitions", &format!("taskbell.attempt has none for {day}"))]).await;
    let attempt = "INSERT INTO taskbell.attempt (outbox_id, task_id, idempotency_key, attempt, started_at, duration_ms, verdict)
                   VALUES (1, 't', 'k', 1, now(), 1, 'acknowledge')";
    patient.sql(attempt).await;
    patient
        .found(&[("warn", "partitions", ""), ("warn", "partitions", "SELECT taskbell.move_to_days()")])
        .await;
    let transition = "INSERT INTO taskbell.transition (outbox_id, watch_id, task_id, task_type, to_state, occurred_at, settled_at)
                      VALUES (1, 1, 't', 'create_media_buy', 'completed', now(), now() - interval '9 days')";
    patient.sql(transition).await;
    patient.sql("SELECT taskbell.move_to_days(); SELECT taskbell.create_partitions()").await;
    let kept = "SELECT (SELECT count(*) FROM taskbell.attempt), (SELECT count(*) FROM taskbell.transition)";
    let kept = patient.client.query_one(kept, &[]).await.unwrap();
    assert_eq!((kept.get::<_, i64>(0), kept.get::<_, i64>(1)), (1, 1), "nothing is lost");
    patient.found(&[]).await;
}

#[tokio::test]
async fn registrations_that_no_key_opens_are_counted_by_the_key_that_sealed_them() {
    let patient = Patient::well().await;
    let config = r#"{"url":"https://buyer.example/","operation_id":"o","token":"sixteen characters"}"#;
    issue(&patient.client, "t1", None).await;
    let register = "SELECT taskbell.register_webhook('t1', $1::text::jsonb)::text";
    patient.client.query_one(register, &[&config]).await.unwrap();
    patient.found(&[("warn", "sealed secrets", "1 registrations hold plain secrets")]).await;
    let reseal = async |keys: &str| {
        let mut command = taskbell(Some(&patient.database), &["keys", "reseal"]);
        command.env("TASKBELL_SEALING__KEY_FILES", keys);
        assert_eq!(run(command).await.code, 0);
    };
    reseal(&patient.path("seal.jwk")).await;
    patient.found(&[]).await;
    let new = patient.path("new.jwk");
    let arguments = ["keys", "generate", &new, "--sealing", "--kid", "seal-2"];
    assert_eq!(run(taskbell(None, &arguments)).await.code, 0);
    let with = async |keys: &str| {
        let mut command = patient.command(&[]);
        command.env("TASKBELL_SEALING__KEY_FILES", keys);
        run(command).await
    };
    let lost = ("fail", "sealed secrets", "no configured key opens 1 registrations that seal-1 sealed");
    assert_found(&with(&new).await, &[lost]);
    let old = ("warn", "sealed secrets", "`taskbell keys reseal`");
    assert_found(&with(&format!("{new},{}", patient.path("seal.jwk"))).await, &[old]);
}

#[tokio::test]
async fn rows_of_the_sdks_outbox_that_its_key_does_not_open_are_named() {
    let patient = Patient::well().await;
    let hex = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    std::fs::write(patient.path("sdk.hex"), hex(&super::sealed::KEY)).unwrap();
    let sdk = async |arguments: &[&str]| {
        let mut command = patient.command(arguments);
        command.env("TASKBELL_SOURCES__SEALED__TABLE", "adcp_task_webhook_outbox");
        command.env("TASKBELL_SOURCES__SEALED__KEY_FILES", patient.path("sdk.hex"));
        run(command).await
    };
    assert_found(&sdk(&[]).await, &[("fail", "SDK outbox", "create_schema makes it")]);
    patient.sql(include_str!("support/sdk_outbox.sql")).await;
    assert_found(&sdk(&[]).await, &[]);
    super::sealed::Row::new("t1", "https://localhost:1/").insert(&patient.client).await;
    assert_found(&sdk(&[]).await, &[]);
    let late = "available_at = now() - interval '1 hour'";
    patient.sql(&format!("UPDATE adcp_task_webhook_outbox SET {late}")).await;
    assert_found(&sdk(&[]).await, &[("fail", "webhooks", "the SDK's outbox: 1 owed, and one")]);
    patient.sql("UPDATE adcp_task_webhook_outbox SET available_at = now()").await;
    let closed = ("warn", "destinations", "https://localhost:1: ");
    assert_found(&sdk(&["--destinations"]).await, &[closed]);
    std::fs::write(patient.path("sdk.hex"), "11".repeat(32)).unwrap();
    let lost = ("fail", "SDK outbox", "no configured key opens 1 of the last 1 rows owed");
    assert_found(&sdk(&[]).await, &[lost]);
    patient.sql("ALTER TABLE adcp_task_webhook_outbox DROP COLUMN last_error").await;
    assert_found(&sdk(&[]).await, &[("fail", "SDK outbox", "has no column last_error")]);
}

#[tokio::test]
async fn destinations_are_knocked_at_through_the_guard() {
    let (patient, trusted, stranger) =
        (Patient::well().await, Receiver::start().await, Receiver::start().await);
    let urls = [
        trusted.url("/ok"),
        stranger.url("/ok"),
        "https://localhost:1/".to_owned(),
        "https://169.254.169.254/".to_owned(),
    ];
    for (n, url) in urls.iter().enumerate() {
        let task = format!("t{n}");
        issue(&patient.client, &task, Some("https://buyer.example/")).await;
        let lane = url::Url::parse(url).unwrap();
        let lane = format!("https://{}:{}", lane.host_str().unwrap(), lane.port_or_known_default().unwrap());
        let change = "UPDATE taskbell.registration SET url = $2, lane = $3 WHERE task_id = $1";
        patient.client.execute(change, &[&task, url, &lane]).await.unwrap();
        complete(&patient.client, &task).await;
    }
    let mut command = patient.command(&["--destinations"]);
    command
        .env("TASKBELL_HTTP__CA_FILE", trusted.ca_file.path())
        .env("TASKBELL_GUARD__ALLOW_PRIVATE", "true");
    let said = run(command).await;
    let findings = said.documents().remove(0);
    let of = |url: &str| {
        let lane = url.trim_end_matches("/ok").trim_end_matches('/').to_owned();
        let mut findings = findings.as_array().unwrap().iter();
        let found = findings.find(|finding| finding["says"].as_str().unwrap().starts_with(&lane));
        let found = found.unwrap_or_else(|| panic!("{lane}: {said:?}"));
        (found["severity"].as_str().unwrap(), found["says"].as_str().unwrap())
    };
    for (url, severity, says) in [
        (&urls[0], "ok", "TLS 1.3"),
        (&urls[1], "warn", "certificate"),
        (&urls[2], "warn", "refused"),
        (&urls[3], "warn", "address"),
    ] {
        let found = of(url);
        assert!(found.0 == severity && found.1.contains(says), "{found:?}");
    }
    assert_eq!((said.code, trusted.posts().len()), (0, 0), "{said:?}");
}
