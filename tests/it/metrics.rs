//! What is exported: once each, in so many series, by one daemon of several, and as documented.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use taskbell::metrics::{ALL, Kind, Label, TaskTypes};
use taskbell::migrations;
use tokio_postgres::Client;

use super::daemon::{Running, signing_key};
use super::support::cluster::Cluster;
use super::support::proxy::Weather;
use super::support::{INSERT, TestDatabase, eventually};

/// The value of every series that the daemon exports.
async fn exported(daemon: &Running) -> BTreeMap<String, f64> {
    let (status, text) = daemon.get("/metrics").await;
    assert_eq!(status, 200);
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

const OPEN: &str = "taskbell_tasks_open{task_type=\"create_media_buy\",state=\"submitted\"}";
const REFRESHED: &str = "taskbell_gauges_refreshed_timestamp_seconds";

/// Whose turn it is, and how many open tasks they see.
async fn reports(daemon: &Running, open: f64) -> bool {
    let series = exported(daemon).await;
    series[REFRESHED] > 0.0 && (series[OPEN] - open).abs() < 0.5
}

/// Everything that the database knows is zero here.
async fn is_silent(daemon: &Running) -> bool {
    let series = exported(daemon).await;
    let shared: Vec<&str> =
        ALL.iter().filter(|metric| metric.kind == Kind::Shared).map(|metric| metric.name).collect();
    let known = |name: &str| shared.contains(&name.split('{').next().unwrap_or(name));
    series.iter().all(|(name, value)| !known(name) || *value == 0.0)
}

async fn issue_many(client: &Client, first: i32, tasks: i32, url: &str) {
    let insert = "INSERT INTO decisioning_tasks (task_id, account_id, task_type, created_at, updated_at)
                  SELECT 'task_' || n, 'acct', 'create_media_buy', extract(epoch FROM now()), 0
                  FROM generate_series($1::int, $2::int) AS n";
    client.execute(insert, &[&first, &(first + tasks - 1)]).await.unwrap();
    // Every other task has a buyer.
    let register = "SELECT taskbell.register_webhook('task_' || n, jsonb_build_object('url', $3::text, 'operation_id', 'op_' || n))
                    FROM generate_series($1::int, $2::int, 2) AS n";
    client.query(register, &[&first, &(first + tasks - 1), &url]).await.unwrap();
}

#[tokio::test]
async fn each_transition_is_observed_once_by_all_daemons_and_restarts_together() {
    const TASKS: i32 = 60;
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    let directory = tempfile::tempdir().unwrap();
    let key = signing_key(directory.path());
    // Nobody listens there: what is owed stays owed, and is claimed again and again.
    let environment = [
        ("TASKBELL_SIGNING__KEY_FILES", key.as_str()),
        ("TASKBELL_GUARD__ALLOW_PRIVATE", "true"),
        ("TASKBELL_LANES__FAILURES", "1000000"),
        ("TASKBELL_RETRY__SCHEDULE", "100ms"),
    ];
    let observed = |series: &BTreeMap<String, f64>| {
        let count = |name: &str| {
            let name = format!("{name}{{task_type=\"create_media_buy\",");
            series.iter().filter(|(series, _)| series.starts_with(&name)).map(|(_, value)| value).sum::<f64>()
        };
        (count("taskbell_task_state_seconds_count"), count("taskbell_task_duration_seconds_count"))
    };
    let together = async |daemons: &[&Running], gone: (f64, f64)| {
        let mut sum = gone;
        for daemon in daemons {
            let (states, ends) = observed(&exported(daemon).await);
            sum = (sum.0 + states, sum.1 + ends);
        }
        sum
    };
    let tried_at_least = async |attempts: i32| {
        eventually("another attempt of each", async || {
            let sql = "SELECT min(attempt_count) FROM taskbell.outbox WHERE lane IS NOT NULL";
            let least: Option<i32> = client.query_one(sql, &[]).await.unwrap().get(0);
            least.is_some_and(|least| least >= attempts).then_some(())
        })
        .await;
    };

    // Of two changes of one task each daemon may take one.
    let work = async |first: i32, daemons: &[&Running], gone: (f64, f64)| {
        issue_many(&client, first, TASKS, "https://127.0.0.1:1/hook").await;
        let tasks = u64::try_from(TASKS).unwrap();
        let worked_on = "UPDATE decisioning_tasks SET state = 'working' WHERE state = 'submitted'";
        assert_eq!(client.execute(worked_on, &[]).await.unwrap(), tasks);
        let ended = "UPDATE decisioning_tasks SET state = 'completed', result = '{}' WHERE state = 'working'";
        assert_eq!(client.execute(ended, &[]).await.unwrap(), tasks);
        let all = f64::from(first - 1 + TASKS);
        eventually("work is seen to end", async || {
            let (states, ends) = together(daemons, gone).await;
            (states >= 2.0 * all && ends >= all).then_some(())
        })
        .await;
    };

    let one = Running::start(&database, &environment).await;
    let other = Running::start(&database, &environment).await;
    work(1, &[&one, &other], (0.0, 0.0)).await;
    tried_at_least(2).await;
    let gone = observed(&exported(&one).await);
    assert!(one.stop().success());

    // The new process claims what the old one had observed, and more.
    let restarted = Running::start(&database, &environment).await;
    work(1 + TASKS, &[&restarted, &other], gone).await;
    tried_at_least(4).await;
    let all = f64::from(2 * TASKS);
    assert_eq!(together(&[&restarted, &other], gone).await, (2.0 * all, all), "none twice");
    assert!(restarted.stop().success() && other.stop().success());
}

#[tokio::test]
async fn one_daemon_refreshes_the_gauges_until_another_takes_over_and_then_knows_nothing() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    issue_many(&client, 1, 3, "https://buyer.example/hook").await;
    let mut first = Running::start(&database, &[]).await;
    eventually("the only one reports", async || reports(&first, 3.0).await.then_some(())).await;
    let second = Running::start(&database, &[]).await;
    issue_many(&client, 4, 1, "https://buyer.example/hook").await;
    eventually("the first goes on", async || reports(&first, 4.0).await.then_some(())).await;
    assert!(is_silent(&second).await);

    first.kill();
    eventually("the second takes over", async || reports(&second, 4.0).await.then_some(())).await;
    let third = Running::start(&database, &[]).await;
    // A process that is frozen keeps its connections, and says nothing.
    second.signal("STOP");
    eventually("the third takes over", async || reports(&third, 4.0).await.then_some(())).await;
    second.signal("CONT");
    eventually("the second has forgotten", async || is_silent(&second).await.then_some(())).await;
    assert!(reports(&third, 4.0).await);

    assert!(third.stop().success());
    eventually("the turn is given back", async || reports(&second, 4.0).await.then_some(())).await;
    client.batch_execute("UPDATE decisioning_tasks SET state = 'completed', result = '{}'").await.unwrap();
    eventually("a drained gauge is zero", async || reports(&second, 0.0).await.then_some(())).await;
    assert!(second.stop().success());
}

#[tokio::test]
async fn what_was_read_from_a_database_that_is_gone_does_not_stay() {
    let database = TestDatabase::migrated().await;
    issue_many(&database.client().await, 1, 3, "https://buyer.example/hook").await;
    let (behind, proxy) = database.behind_a_proxy().await;
    let daemon = Running::start(&behind, &[("TASKBELL_DATABASE__STATEMENT_TIMEOUT", "1s")]).await;
    eventually("it reports", async || reports(&daemon, 3.0).await.then_some(())).await;
    proxy.set_all(Weather::Cut);
    eventually("it has forgotten", async || is_silent(&daemon).await.then_some(())).await;
    proxy.set_all(Weather::Clear);
    eventually("it reports again", async || reports(&daemon, 3.0).await.then_some(())).await;
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn ten_thousand_types_destinations_and_accounts_are_no_more_series() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    let daemon = Running::start(&database, &[]).await;
    let at_start: BTreeSet<String> = exported(&daemon).await.into_keys().collect();
    // Addresses that must not be called: each webhook is a dead letter at once, of its own lane.
    client
        .batch_execute(
            "INSERT INTO decisioning_tasks (task_id, account_id, task_type, created_at, updated_at)
             SELECT 'strange_' || n, 'acct_' || n, 'type_' || n, extract(epoch FROM now()), 0 FROM generate_series(1, 10000) n;
             INSERT INTO decisioning_tasks (task_id, account_id, task_type, created_at, updated_at)
             SELECT 'owed_' || n, 'acct_' || n, 'create_media_buy', extract(epoch FROM now()), 0 FROM generate_series(1, 10000) n;
             SELECT taskbell.register_webhook('owed_' || n, jsonb_build_object(
                 'url', 'https://127.0.0.1:' || n + 10000 || '/hook', 'operation_id', 'op_' || n))
             FROM generate_series(1, 10000) n;
             UPDATE decisioning_tasks SET state = 'completed', result = '{}' WHERE task_id LIKE '%5';
             UPDATE decisioning_tasks SET state = 'completed', result = '{}' WHERE task_id LIKE 'owed%' AND state = 'submitted';
             INSERT INTO taskbell.outbox (watch_id, task_id, account_id, task_type, to_state, lane, idempotency_key,
                 available_at)
             SELECT 1, 'waits_' || n, 'acct_' || n, 'create_media_buy', 'completed', 'https://buyer' || n || '.example:443',
                 gen_random_uuid(), now() + interval '1 hour' FROM generate_series(1, 10000) n;
             INSERT INTO taskbell.circuit (lane, account_id, failures, closed_until, last_reason)
             SELECT lane, account_id, 5, now() + interval '1 hour', 'timeout'
             FROM taskbell.outbox WHERE task_id LIKE 'waits_%'",
        )
        .await
        .unwrap();
    let series = eventually("all is exported", async || {
        let series = exported(&daemon).await;
        let expected = [
            ("taskbell_outbox_rows{source=\"native\",state=\"invalid\"}", 10_000.0),
            ("taskbell_tasks_open{task_type=\"other\",state=\"submitted\"}", 9_000.0),
            ("taskbell_task_duration_seconds_count{task_type=\"other\",outcome=\"completed\"}", 1_000.0),
            (
                "taskbell_task_duration_seconds_count{task_type=\"create_media_buy\",outcome=\"completed\"}",
                10_000.0,
            ),
            ("taskbell_lanes{state=\"closed\"}", 10_000.0),
        ];
        let shown = |(name, value): (&str, f64)| series.get(name).is_some_and(|found| *found == value);
        expected.into_iter().all(shown).then_some(series)
    })
    .await;
    // The buckets of two task types and of one outcome of attempts.
    let more: Vec<&String> = series.keys().filter(|name| !at_start.contains(*name)).collect();
    let may_come =
        ["taskbell_task_duration_seconds", "taskbell_task_state_seconds", "taskbell_attempt_seconds"];
    assert!(more.iter().all(|name| may_come.iter().any(|known| name.starts_with(known))), "{more:?}");
    // As docs/metrics.md counts.
    let told = include_str!("../../docs/metrics.md");
    let ours = at_start.iter().filter(|name| name.starts_with("taskbell_")).count();
    assert!(
        told.contains(&format!("**How many**: {ours} series at the start, 184 more for each task type")),
        "{ours}"
    );
    assert_eq!(more.len(), 2 * 184 + 19);
    assert!(
        !series
            .keys()
            .any(|name| name.contains("type_1") || name.contains("127.0.0.1") || name.contains("acct"))
    );
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn what_waits_behind_a_circuit_that_is_closed_or_recovering_is_not_due() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    issue_many(&client, 1, 1, "https://buyer.example/hook").await;
    client
        .batch_execute(
            "UPDATE decisioning_tasks SET state = 'completed', result = '{}';
             UPDATE taskbell.outbox SET available_at = now() - interval '1 hour' WHERE lane IS NOT NULL",
        )
        .await
        .unwrap();
    let due = async || {
        let row = client.query_one(include_str!("../../src/daemon/outbox_gauges.sql"), &[]).await.unwrap();
        row.get::<_, f64>(4)
    };
    assert!(due().await >= 3600.0);
    for (closed_until, recovered, is_due) in [
        ("now() + interval '1 minute'", "NULL", false),
        ("now()", "NULL", true),
        ("NULL", "NULL", true),
        ("NULL", "0", false),
        ("NULL", "7", false),
    ] {
        let circuit = format!(
            "DELETE FROM taskbell.circuit;
             INSERT INTO taskbell.circuit (lane, account_id, failures, closed_until, recovered, last_reason)
             SELECT lane, account_id, 5, {closed_until}, {recovered}, 'timeout'
             FROM taskbell.outbox WHERE lane IS NOT NULL"
        );
        client.batch_execute(&circuit).await.unwrap();
        assert_eq!(due().await >= 3600.0, is_due, "{closed_until}, {recovered}");
    }
}

#[tokio::test]
async fn a_circuit_where_nothing_is_owed_is_not_counted_and_forgotten_after_an_hour() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    issue_many(&client, 1, 2, "https://buyer.example/hook").await;
    client
        .batch_execute(
            "UPDATE decisioning_tasks SET state = 'completed', result = '{}' WHERE task_id = 'task_1';
             UPDATE taskbell.outbox SET available_at = now() + interval '1 day' WHERE lane IS NOT NULL;
             INSERT INTO taskbell.circuit (lane, account_id, failures, last_reason, closed_until, recovered, failing_since)
             VALUES ('https://buyer.example:443', 'acct', 5, 'timeout', now(), NULL, now() - interval '1 day'),
                    ('https://buyer.example:443', 'idle', 5, 'timeout', now(), NULL, now() - interval '1 day'),
                    ('https://buyer.example:444', 'acct', 2, 'timeout', NULL, NULL, now() - interval '2 hours'),
                    ('https://buyer.example:445', 'acct', 0, 'timeout', NULL, 3, now() - interval '2 hours'),
                    ('https://kept.example:443', 'paused', 5, 'timeout', now() + interval '1 hour', NULL, now() - interval '1 day'),
                    ('https://kept.example:443', 'young', 5, 'timeout', now(), NULL, now() - interval '50 minutes')",
        )
        .await
        .unwrap();
    let counted = async || {
        let row = client.query_one(include_str!("../../src/daemon/lane_gauges.sql"), &[]).await.unwrap();
        [0, 1, 2, 3].map(|column| row.get::<_, i64>(column))
    };
    assert_eq!(counted().await, [0, 1, 0, 0], "the one that is owed something");
    let daemon = Running::start(&database, &[]).await;
    eventually("house is kept", async || {
        let sql = "SELECT lane || ' ' || account_id FROM taskbell.circuit ORDER BY 1";
        let rows = client.query(sql, &[]).await.unwrap();
        let left: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let kept = [
            "https://buyer.example:443 acct",
            "https://kept.example:443 paused",
            "https://kept.example:443 young",
        ];
        (left == kept).then_some(())
    })
    .await;
    assert!(daemon.stop().success());
    // What is given up is not owed any more.
    client
        .batch_execute(
            "UPDATE taskbell.outbox SET state = 'invalid', available_at = NULL, last_reason = 'gone' WHERE lane IS NOT NULL",
        )
        .await
        .unwrap();
    assert_eq!(counted().await, [0; 4]);
}

/// On a server of its own: other tests have transactions too.
#[tokio::test]
async fn the_daemons_role_sees_the_oldest_transaction_or_says_that_it_may_not() {
    let cluster = Cluster::start(&["max_prepared_transactions=2"]).await;
    let database = TestDatabase::at(&cluster.dsn());
    let owner = database.client().await;
    migrations::apply(&mut database.client().await).await.unwrap();
    owner.batch_execute(include_str!("../../examples/roles.sql")).await.unwrap();
    owner.batch_execute("CREATE DATABASE elsewhere").await.unwrap();
    let role =
        |name: &str| TestDatabase::at(&cluster.dsn().replace("user=postgres", &format!("user={name}")));
    let daemon = role("taskbell_daemon").client().await;
    // When it began; none when it is as old as the look itself.
    let oldest = async || {
        let sql = format!(
            "SELECT extract(epoch FROM now())::float8 - age, age FROM ({}) AS gauges(queue, age)",
            include_str!("../../src/daemon/database_gauges.sql")
        );
        let row = daemon.query_one(&sql, &[]).await.unwrap();
        (row.get::<_, f64>(1) != 0.0).then(|| row.get::<_, f64>(0))
    };
    let began = async |client: &Client| {
        let row = client.query_one("SELECT extract(epoch FROM now())::float8", &[]).await.unwrap();
        row.get::<_, f64>(0)
    };
    let is = |found: Option<f64>, expected: f64| {
        assert!(found.is_some_and(|found| (found - expected).abs() < 1e-5), "{found:?}, not {expected}");
    };
    assert_eq!(oldest().await, None);

    let elsewhere =
        TestDatabase::at(&cluster.dsn().replace("dbname=postgres", "dbname=elsewhere")).client().await;
    elsewhere.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.unwrap();
    let seller = role("seller").client().await;
    seller.batch_execute("BEGIN; SELECT 1").await.unwrap();
    assert_eq!(oldest().await, None, "one that reads elsewhere, and one that holds nothing back");
    let seller_began = began(&seller).await;
    seller.execute(INSERT, &[&"task_1"]).await.unwrap();
    is(oldest().await, seller_began);

    // READ COMMITTED has no snapshot between two statements; and a prepared one has no session.
    owner.batch_execute("BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'p'").await.unwrap();
    is(oldest().await, seller_began);
    seller.batch_execute("ROLLBACK").await.unwrap();
    let prepared = "SELECT extract(epoch FROM prepared)::float8 FROM pg_prepared_xacts";
    is(oldest().await, owner.query_one(prepared, &[]).await.unwrap().get(0));
    owner.batch_execute("ROLLBACK PREPARED 'p'").await.unwrap();
    assert_eq!(oldest().await, None);

    let report = database.client().await;
    report.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.unwrap();
    is(oldest().await, began(&report).await);
    report.batch_execute("ROLLBACK").await.unwrap();
    elsewhere.execute("SELECT pg_current_xact_id()", &[]).await.unwrap();
    is(oldest().await, began(&elsewhere).await);

    let running = Running::start(&role("taskbell_daemon"), &[]).await;
    let shown = async || exported(&running).await["taskbell_database_oldest_xmin_seconds"];
    eventually("it is exported", async || (shown().await > 0.0).then_some(())).await;
    owner.batch_execute("REVOKE pg_read_all_stats FROM taskbell_daemon").await.unwrap();
    assert!(oldest().await.is_some_and(f64::is_nan));
    eventually("that it may not see", async || shown().await.is_nan().then_some(())).await;
    assert!(running.stop().success());
}

/// The part of docs/metrics.md that the code knows.
fn reference() -> String {
    let types = TaskTypes::new([]);
    let mut text = String::from("| metric | type | labels | |\n|---|---|---|---|\n");
    for metric in ALL {
        let kind = match metric.kind {
            Kind::Shared => "gauge, shared",
            kind => kind.as_str(),
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{}`", label.name())).collect();
        writeln!(text, "| `{}` | {kind} | {} | {} |", metric.name, labels.join(", "), metric.help()).unwrap();
    }
    text.push_str("\n| label | of | values |\n|---|---|---|\n");
    let mut told = Vec::new();
    for label in ALL.iter().flat_map(|metric| metric.labels) {
        if told.contains(label) {
            continue;
        }
        told.push(*label);
        let of: Vec<String> = ALL
            .iter()
            .filter(|metric| metric.labels.contains(label))
            .map(|metric| format!("`{}`", metric.name.trim_start_matches("taskbell_")))
            .collect();
        let values: Vec<String> = label.values(&types).iter().map(|value| format!("`{value}`")).collect();
        let values = match label {
            Label::Version => "that of the build".to_owned(),
            Label::TaskType => format!("those of `metrics.task_types`, and {}", values.join(", ")),
            _ => values.join(", "),
        };
        writeln!(text, "| `{}` | {} | {values} |", label.name(), of.join(", ")).unwrap();
    }
    text
}

#[test]
fn the_reference_says_what_the_code_exports() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let written = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = written.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let right = format!("{before}{BEGIN}{}{END}{after}", reference());
    if written != right && std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &right).unwrap();
        return;
    }
    assert!(
        written == right,
        "docs/metrics.md is not what src/metrics.rs says: `just reference` writes it anew"
    );
}

const BEGIN: &str = "<!-- written by `just reference` from src/metrics.rs -->\n\n";
const END: &str = "\n<!-- end -->";
