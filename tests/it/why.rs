//! `taskbell why`: every verdict on a real database.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::cli::{Said, run, taskbell};
use super::support::daemon::Daemon;
use super::support::receiver::Receiver;
use super::support::{TestDatabase, complete, eventually, issue};

/// A webhook owed to nobody who answers, and the delivery's id.
async fn owed(client: &Client, id: &str) -> i64 {
    issue(client, id, Some("https://buyer.example/hook/9f8e7d6c5b4a39281706hush?secret=hush")).await;
    complete(client, id).await;
    let sql = "SELECT delivery_id FROM taskbell.delivery WHERE task_id = $1";
    client.query_one(sql, &[&id]).await.unwrap().get(0)
}

async fn ask(database: &TestDatabase, arguments: &[&str]) -> Said {
    let said = run(taskbell(Some(database), &[&["why"], arguments].concat())).await;
    assert!(!format!("{said:?}").contains("hush"), "{said:?}");
    said
}

/// The one answer as JSON, which must have this verdict; the text must say the same.
async fn why(database: &TestDatabase, what: &str, verdict: &str) -> Value {
    let said = ask(database, &[what, "--json"]).await;
    assert_eq!((said.code, said.out.lines().count()), (0, 1), "{said:?}");
    let answer: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(answer["verdict"], verdict, "{answer:#}");
    let text = ask(database, &[what]).await;
    // Spans from now may differ between the two.
    let says = answer["says"].as_str().unwrap().split(" (").next().unwrap();
    assert!(text.code == 0 && text.out.contains(says), "{says}\n{text:?}");
    answer
}

fn todo(answer: &Value) -> &str {
    answer["todo"].as_str().unwrap()
}

/// A session that looks like a daemon's to the database.
async fn listening(database: &TestDatabase) -> Client {
    let client = database.client().await;
    client.batch_execute("LISTEN taskbell").await.unwrap();
    client
}

#[tokio::test]
async fn a_webhook_that_went_out_or_failed_is_explained_by_every_name_it_has() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let client = database.client().await;
    let daemon = Daemon::start(&database, &receiver, |_| {}).await;
    for (task, path) in [("t_ok", "/once?secret=hush"), ("t_gone", "/410"), ("t_slow", "/404")] {
        issue(&client, task, Some(&receiver.url(path))).await;
        complete(&client, task).await;
    }
    for (task, state) in [("t_ok", "delivered"), ("t_gone", "invalid")] {
        super::support::daemon::delivery_in(&client, task, state).await;
    }
    let delivered = why(&database, "t_ok", "delivered").await;
    let delivery = &delivered["deliveries"][0];
    let attempts: Vec<(&Value, &Value)> = delivery["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| (&attempt["status"], &attempt["reason"]))
        .collect();
    assert_eq!(attempts, [(&json!(503), &json!("server_error")), (&json!(200), &Value::Null)]);
    assert_eq!(delivered["daemon"]["listens"], true);
    assert_eq!(delivered["timeline"][1]["to"], "completed");
    let key = delivery["idempotency_key"].as_str().unwrap();
    for name in ["op_t_ok", key, &delivery["delivery_id"].to_string()] {
        assert_eq!(why(&database, name, "delivered").await["task_id"], "t_ok", "{name}");
        let within = ask(&database, &[name, "--since", "1h", "--json"]).await;
        assert!(within.out.contains("\"task_id\":\"t_ok\""), "{within:?}");
        assert_eq!(ask(&database, &[name, "--since", "0s"]).await.code, 2, "{name}");
    }
    let text = ask(&database, &["t_ok"]).await.out;
    assert!(
        text.contains("attempt 1 at ") && text.contains("The receiver answered with a server error"),
        "{text}"
    );

    let dead = why(&database, "t_gone", "dead_letter").await;
    let id = &dead["deliveries"][0]["delivery_id"];
    assert!(todo(&dead).contains(&format!("taskbell deliveries retry {id}")), "{dead}");
    assert!(dead["says"].as_str().unwrap().contains("410"), "{dead}");

    eventually("the attempt that got a 404 is settled", async || {
        let sql = "SELECT FROM taskbell.outbox WHERE task_id = 't_slow' AND state = 'pending' AND attempt_count = 1";
        client.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    let waiting = why(&database, "t_slow", "waiting").await;
    assert!(waiting["says"].as_str().unwrap().contains("unauthorized, answered with 404"), "{waiting}");
    assert_eq!(waiting["registration"]["scheme"], "RFC 9421");
    daemon.stop().await;
}

#[tokio::test]
async fn what_holds_a_webhook_up_is_named() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    let id = owed(&client, "t1").await;
    let alone = why(&database, "t1", "no_daemon").await;
    assert!(todo(&alone).contains("taskbell run"), "{alone}");
    let ear = listening(&database).await;
    assert_eq!(why(&database, "t1", "due").await["daemon"], json!({ "listens": true, "awake": false }));
    ear.batch_execute("SELECT pg_advisory_lock(8386110886190083180)").await.unwrap();
    assert_eq!(why(&database, "t1", "due").await["daemon"]["awake"], true);

    let lane = "https://buyer.example:443";
    let ear = listening(&database).await;
    client
        .batch_execute(&format!(
            "INSERT INTO taskbell.circuit (lane, account_id, failures, closed_until, last_reason)
             VALUES ('{lane}', 'acct', 5, now() + interval '4 minutes', 'connect')"
        ))
        .await
        .unwrap();
    let closed = why(&database, "t1", "lane_closed").await;
    assert!(todo(&closed).contains(&format!("taskbell lanes open {lane}")), "{closed}");
    assert!(closed["says"].as_str().unwrap().contains("No connection to the receiver"), "{closed}");
    client.batch_execute("UPDATE taskbell.circuit SET probing = true").await.unwrap();
    why(&database, "t1", "lane_probing").await;
    client.batch_execute("DELETE FROM taskbell.circuit").await.unwrap();

    client
        .batch_execute(
            "UPDATE taskbell.outbox SET state = 'in_flight', attempt_count = 1, lease_token = gen_random_uuid(),
             lease_expires_at = now() + interval '1 minute' WHERE lane IS NOT NULL",
        )
        .await
        .unwrap();
    why(&database, "t1", "in_flight").await;
    client
        .batch_execute(
            "UPDATE taskbell.outbox SET state = 'expired', available_at = NULL, lease_token = NULL, lease_expires_at = NULL, last_reason = 'dns',
             first_attempt_at = now() - interval '2 days', retry_until = now() - interval '1 day'
             WHERE lane IS NOT NULL",
        )
        .await
        .unwrap();
    let expired = why(&database, "t1", "dead_letter").await;
    assert!(todo(&expired).contains(&format!("retry {id} --past-horizon")), "{expired}");
    client.query_one("SELECT taskbell.cancel_delivery($1)", &[&id]).await.unwrap();
    why(&database, "t1", "cancelled").await;
    drop(ear);
}

#[tokio::test]
async fn a_task_that_rings_nobody_says_why() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    issue(&client, "t_open", Some("https://buyer.example/9f8e7d6c5b4a39281706hush?secret=hush")).await;
    let open = why(&database, "op_t_open", "open").await;
    assert_eq!(open["registration"]["url"], "https://buyer.example/[redacted]");
    issue(&client, "t_plain", None).await;
    assert!(todo(&why(&database, "t_plain", "open_unregistered").await).contains("register_webhook"));
    complete(&client, "t_plain").await;
    why(&database, "t_plain", "unregistered").await;
    let at_once =
        "INSERT INTO decisioning_tasks (task_id, account_id, state, task_type, created_at, updated_at)
                   VALUES ('t_at_once', 'a', 'completed', 'create_media_buy', 0, 0)";
    client.batch_execute(at_once).await.unwrap();
    why(&database, "t_at_once", "ended_at_once").await;

    // What a REPEATABLE READ transaction that ended the task could not see.
    issue(&client, "t_race", Some("https://buyer.example/")).await;
    complete(&client, "t_race").await;
    let unseen = "UPDATE taskbell.outbox SET lane = NULL, idempotency_key = NULL WHERE task_id = 't_race'";
    client.batch_execute(unseen).await.unwrap();
    why(&database, "t_race", "ended_before_registration").await;

    issue(&client, "t_sdk", None).await;
    let theirs = "UPDATE decisioning_tasks SET webhook_registration = 'x', webhook_registration_nonce = 'n'
                  WHERE task_id = 't_sdk'";
    client.batch_execute(theirs).await.unwrap();
    why(&database, "t_sdk", "open_with_sdk").await;
    complete(&client, "t_sdk").await;
    why(&database, "t_sdk", "ended_beside_sdk").await;

    issue(&client, "t_gone", None).await;
    client.batch_execute("DELETE FROM decisioning_tasks WHERE task_id = 't_gone'").await.unwrap();
    why(&database, "t_gone", "gone").await;
    client
        .batch_execute(
            "ALTER TABLE decisioning_tasks DISABLE TRIGGER taskbell_record;
             INSERT INTO decisioning_tasks (task_id, account_id, state, task_type, created_at, updated_at)
             VALUES ('t_dark', 'a', 'failed', 'create_media_buy', 0, 0)",
        )
        .await
        .unwrap();
    why(&database, "t_dark", "unrecorded").await;
}

#[tokio::test]
async fn news_of_progress_counts_until_the_end_is_owed_and_a_table_given_up_says_so() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    issue(&client, "t1", Some("https://buyer.example/")).await;
    client.batch_execute("UPDATE taskbell.registration SET states = '{working}'").await.unwrap();
    client.batch_execute("UPDATE decisioning_tasks SET state = 'working'").await.unwrap();
    let _ear = listening(&database).await;
    assert_eq!(why(&database, "t1", "due").await["deliveries"][0]["task_state"], "working");
    complete(&client, "t1").await;
    assert_eq!(why(&database, "t1", "due").await["deliveries"][1]["task_state"], "completed");
    issue(&client, "t2", Some("https://buyer.example/")).await;
    client.batch_execute("SELECT taskbell.unwatch('decisioning_tasks')").await.unwrap();
    assert!(todo(&why(&database, "t2", "unwatched").await).contains("watch add"));
}

#[tokio::test]
async fn the_sdks_outbox_answers_as_far_as_its_columns_tell() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    client.batch_execute(include_str!("support/sdk_outbox.sql")).await.unwrap();
    issue(&client, "t1", None).await;
    complete(&client, "t1").await;
    let row = "INSERT INTO adcp_task_webhook_outbox (task_id, task_type, terminal_status, url, operation_id,
               idempotency_key, account_id, encrypted_body, envelope_nonce, retry_horizon_seconds)
               VALUES ('t1', 'create_media_buy', 'completed', 'https://buyer.example/hook/9f8e7d6c5b4a39281706hush?secret=hush', 'op_sdk',
                       'whk_sdk_0123456789abcdef', 'acct', 'x', '123456789012', 86400)";
    client.batch_execute(row).await.unwrap();
    let there = why(&database, "t1", "not_served").await;
    assert_eq!(there["deliveries"][0]["url"], "https://buyer.example/hook/[redacted]");
    for name in ["op_sdk", "whk_sdk_0123456789abcdef"] {
        assert_eq!(why(&database, name, "not_served").await["table"], "decisioning_tasks", "{name}");
    }
    let served = async || {
        let mut command = taskbell(Some(&database), &["why", "t1", "--json"]);
        command.env("TASKBELL_SOURCES__SEALED__TABLE", "adcp_task_webhook_outbox");
        command.env("TASKBELL_SOURCES__SEALED__KEY_FILES", "/nonexistent");
        let said = run(command).await;
        serde_json::from_str::<Value>(&said.out).unwrap_or_else(|_| panic!("{said:?}"))
    };
    assert_eq!(served().await["verdict"], "no_daemon");
    let change = async |assignments: &str| {
        client.batch_execute(&format!("UPDATE adcp_task_webhook_outbox SET {assignments}")).await.unwrap();
    };
    let _ear = listening(&database).await;
    change("available_at = now() + interval '20 seconds', attempt_count = 2, last_error = 'http_status_503'")
        .await;
    assert_eq!(served().await["verdict"], "waiting");
    change("state = 'in_flight', lease_token = 'l', lease_expires_at = now() + interval '9 s'").await;
    assert_eq!(served().await["verdict"], "in_flight");
    change("state = 'invalid', lease_token = NULL, lease_expires_at = NULL, last_error = 'quarantined'")
        .await;
    let dead = served().await;
    assert!(dead["verdict"] == "dead_letter" && !todo(&dead).contains("taskbell deliveries"), "{dead}");
    change("state = 'delivered', delivered_at = now()").await;
    assert_eq!(why(&database, "t1", "delivered").await["deliveries"][0]["source"], "sealed");
}

#[tokio::test]
async fn a_name_that_is_nobodys_or_several_tasks_says_where_and_which() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    let recent = ask(&database, &["t", "--since", "7d"]).await;
    assert!(recent.err.contains("journal of the last 7days"), "{recent:?}");
    let nowhere = ask(&database, &["t\u{1b}[2J"]).await;
    assert_eq!((nowhere.code, nowhere.out.as_str()), (2, ""), "{nowhere:?}");
    for place in ["decisioning_tasks", "journal of the last 30days", "no outbox of the AdCP Python SDK"] {
        assert!(nowhere.err.contains(place) && !nowhere.err.contains('\u{1b}'), "{place}: {nowhere:?}");
    }
    client
        .batch_execute(
            "CREATE TABLE other_tasks (id bigint PRIMARY KEY, status text, kind text);
             SELECT taskbell.watch('other_tasks', 'custom', 'id', 'status', 'kind');
             INSERT INTO other_tasks VALUES (41, 'submitted', 'create_media_buy'),
                                            (42, 'submitted', 'create_media_buy')",
        )
        .await
        .unwrap();
    issue(&client, "42", None).await;
    let both = ask(&database, &["42"]).await;
    assert!(both.code == 0 && both.out.starts_with("2 tasks are known as 42:"), "{both:?}");
    let one = ask(&database, &["42", "--table", "other_tasks", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&one.out).unwrap()["table"], "other_tasks");

    for id in ["a1", "a2"] {
        issue(&client, id, Some("https://buyer.example/")).await;
    }
    client.batch_execute("UPDATE taskbell.registration SET operation_id = 'op_same'").await.unwrap();
    let same = ask(&database, &["op_same"]).await;
    assert!(
        same.out.contains("a1") && same.out.contains("a2") && same.out.contains("More than one"),
        "{same:?}"
    );
    assert_eq!(ask(&database, &["op_same", "--json"]).await.out.lines().count(), 2);
}

#[tokio::test]
async fn the_activity_view_has_every_field_of_the_record_and_no_secret_of_the_url() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let client = database.client().await;
    let daemon =
        Daemon::start(&database, &receiver, |tuning| tuning.worker.deadline = Duration::from_millis(300))
            .await;
    let path = "/once/9f8e7d6c5b4a39281706abcd/create_media_buy_notifications?token=hush";
    for (task, url) in [
        ("t_once", receiver.url(path)),
        ("t_hang", receiver.url("/hang")),
        ("t_closed", "https://localhost:1/".to_owned()),
    ] {
        issue(&client, task, Some(&url)).await;
        complete(&client, task).await;
    }
    super::support::daemon::delivery_in(&client, "t_once", "delivered").await;
    let records = async |task: &str| {
        let sql = "SELECT to_jsonb(a) FROM taskbell.webhook_activity a
                   WHERE account_id = 'acct' AND task_id = $1 ORDER BY fired_at";
        let rows = client.query(sql, &[&task]).await.unwrap();
        rows.iter().map(|row| row.get::<_, Value>(0)).collect::<Vec<_>>()
    };
    for (task, status) in [("t_hang", "timeout"), ("t_closed", "connection_error")] {
        let first = eventually(task, async || records(task).await.into_iter().next()).await;
        assert_eq!(
            (&first["status"], &first["http_status_code"], &first["response_time_ms"]),
            (&json!(status), &Value::Null, &Value::Null)
        );
    }
    let once = records("t_once").await;
    let told = once.iter().map(|record| (&record["attempt"], &record["status"], &record["error_message"]));
    assert_eq!(
        told.collect::<Vec<_>>(),
        [(&json!(1), &json!("failed"), &json!("server_error")), (&json!(2), &json!("success"), &Value::Null)]
    );
    let record = once[0].as_object().unwrap();
    // The fields of webhook-activity-record.json, but for `ext`.
    for field in [
        "idempotency_key",
        "fired_at",
        "notification_type",
        "attempt",
        "status",
        "url",
        "completed_at",
        "http_status_code",
        "response_time_ms",
        "error_message",
        "notification_id",
        "subscriber_id",
        "sequence_number",
        "payload_size_bytes",
    ] {
        assert!(record.contains_key(field), "{field}");
    }
    assert_eq!(record["notification_id"], "t_once.terminal");
    assert_eq!(record["url"], receiver.url("/once/[redacted]/create_media_buy_notifications"));
    daemon.stop().await;
}
