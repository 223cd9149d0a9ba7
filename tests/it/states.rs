//! Which states ring the buyer: the end of a task always, open ones on request, old ones never.

use serde_json::{Value, json};
use taskbell::outbox::{Outbox, Room, Settlement, Verdict};
use taskbell::webhook::Outcome;
use tokio_postgres::Client;

use super::support::daemon::{Daemon, outbox};
use super::support::receiver::Receiver;
use super::support::{INSERT, TestDatabase, complete, eventually, issue};

/// Issues a task whose buyer hears of these open states too.
async fn issue_for(client: &Client, id: &str, url: &str, states: &[&str]) {
    client.execute(INSERT, &[&id]).await.unwrap();
    let config = json!({ "url": url, "operation_id": "op" }).to_string();
    let sql = "SELECT taskbell.register_webhook($1, $2::text::jsonb, states => $3)::text";
    client.query_one(sql, &[&id, &config, &states]).await.unwrap();
}

async fn set(client: &Client, id: &str, state: &str, progress: &Value) {
    let sql = "UPDATE decisioning_tasks SET state = $2, progress = $3::text::jsonb WHERE task_id = $1";
    assert_eq!(client.execute(sql, &[&id, &state, &progress.to_string()]).await.unwrap(), 1);
}

async fn states(client: &Client, id: &str) -> Vec<(String, String)> {
    let sql = "SELECT task_state, state FROM taskbell.delivery WHERE task_id = $1 ORDER BY delivery_id";
    client.query(sql, &[&id]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn room() -> Room {
    Room::of(10, 10)
}

#[tokio::test]
async fn open_states_ring_only_those_who_asked_and_only_for_the_ones_they_named() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let daemon = Daemon::start(&database, &receiver, |_| {}).await;
    let client = database.client().await;
    issue(&client, "task_quiet", Some(&receiver.url("/ok/quiet"))).await;
    issue_for(&client, "task_loud", &receiver.url("/ok/loud"), &["working", "input-required"]).await;
    for id in ["task_quiet", "task_loud"] {
        set(&client, id, "working", &json!({ "percentage": 5 })).await;
        eventually("its webhook", async || {
            let told = receiver.posts().iter().any(|post| post.json()["status"] == "working");
            (told || id == "task_quiet").then_some(())
        })
        .await;
        set(&client, id, "auth-required", &json!({})).await;
        complete(&client, id).await;
    }
    eventually("both ends", async || {
        (receiver.posts().iter().filter(|post| post.json()["status"] == "completed").count() == 2)
            .then_some(())
    })
    .await;
    let told = |path: &str| {
        let posts = receiver.posts().into_iter().filter(|post| post.path == path);
        posts.map(|post| post.json()).collect::<Vec<_>>()
    };
    let loud = told("/ok/loud");
    let statuses: Vec<&str> = loud.iter().map(|body| body["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["working", "completed"]);
    assert_eq!(loud[0]["result"], json!({ "percentage": 5 }));
    assert!(loud[0].get("notification_id").is_none());
    assert_eq!(loud[1]["notification_id"], "task_loud.terminal");
    assert_ne!(loud[0]["idempotency_key"], loud[1]["idempotency_key"]);
    assert_eq!(told("/ok/quiet").len(), 1);
    eventually("no registration is kept", async || {
        let kept: i64 =
            client.query_one("SELECT count(*) FROM taskbell.registration", &[]).await.unwrap().get(0);
        (kept == 0).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn every_state_that_ends_a_task_rings_and_is_final() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let daemon = Daemon::start(&database, &receiver, |_| {}).await;
    let client = database.client().await;
    for (state, column, document) in [
        ("rejected", "error", json!({ "code": "POLICY_VIOLATION" })),
        ("canceled", "result", Value::Null),
        ("failed", "error", json!({ "code": "X" })),
    ] {
        let (id, path) = (format!("task_{state}"), format!("/ok/{state}"));
        issue(&client, &id, Some(&receiver.url(&path))).await;
        let sql =
            format!("UPDATE decisioning_tasks SET state = $2, {column} = $3::text::jsonb WHERE task_id = $1");
        client.execute(&sql, &[&id, &state, &document.to_string()]).await.unwrap();
        let body = eventually(state, async || {
            receiver.posts().iter().find(|post| post.path == path).map(|post| post.json())
        })
        .await;
        assert_eq!(
            (&body["status"], &body["notification_id"]),
            (&json!(state), &json!(format!("{id}.terminal")))
        );
        let expected = match state {
            "failed" => json!({ "status": "failed", "adcp_error": document, "errors": [document] }),
            _ => document,
        };
        assert_eq!(body["result"], expected);
        let changed = client
            .execute("UPDATE decisioning_tasks SET state = 'completed' WHERE task_id = $1", &[&id])
            .await
            .unwrap_err();
        assert_eq!(changed.as_db_error().unwrap().constraint(), Some("taskbell_terminal_is_final"));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn an_older_state_is_not_sent_after_a_newer_one() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database, std::sync::Arc::default()));
    issue_for(&client, "task_a", "https://buyer.example/", &["working", "input-required"]).await;
    // The first one fails and waits for its retry; the next is delivered in the meantime.
    set(&client, "task_a", "working", &json!({})).await;
    let first = outbox.claim(&room()).await.unwrap().claims.remove(0);
    let settle = |claim: &taskbell::outbox::Claim, verdict| Settlement {
        row: claim.row,
        lease: claim.lease,
        verdict,
        reason: None,
        attempt: None,
    };
    let retry = Verdict::Release { after: std::time::Duration::ZERO };
    outbox.settle(&[settle(&first, retry)]).await.unwrap();
    client
        .batch_execute("UPDATE taskbell.outbox SET available_at = now() + interval '1 hour'")
        .await
        .unwrap();
    set(&client, "task_a", "input-required", &json!({})).await;
    let second = outbox.claim(&room()).await.unwrap().claims.remove(0);
    assert!(second.prepared.is_ok());
    outbox.settle(&[settle(&second, Verdict::Acknowledge)]).await.unwrap();
    client.batch_execute("UPDATE taskbell.outbox SET available_at = now()").await.unwrap();
    let again = outbox.claim(&room()).await.unwrap().claims.remove(0);
    assert_eq!((again.row, again.prepared.as_ref().unwrap_err()), (first.row, &Outcome::Superseded));
    outbox.settle(&[settle(&again, Verdict::Supersede)]).await.unwrap();
    let delivered = |state: &str| (state.to_owned(), "delivered".to_owned());
    assert_eq!(
        states(&client, "task_a").await,
        [("working".to_owned(), "superseded".to_owned()), delivered("input-required")]
    );
    // Of a backlog only the newest goes out.
    set(&client, "task_a", "working", &json!({})).await;
    set(&client, "task_a", "input-required", &json!({})).await;
    complete(&client, "task_a").await;
    let claims = outbox.claim(&room()).await.unwrap().claims;
    let prepared: Vec<bool> = claims.iter().map(|claim| claim.prepared.is_ok()).collect();
    assert_eq!(prepared, [false, false, true]);
}

#[tokio::test]
async fn a_registration_names_only_open_states_and_a_sensible_scope() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    client.execute(INSERT, &[&"task_a"]).await.unwrap();
    let legacy = json!({ "schemes": ["Bearer"], "credentials": "0123456789abcdef".repeat(2) });
    for (arguments, authentication, field) in [
        ("states => '{completed}'", Value::Null, "states"),
        ("states => '{nonsense}'", Value::Null, "states"),
        ("states => NULL", Value::Null, "states"),
        ("signing_scope => ''", Value::Null, "signing_scope"),
        ("signing_scope => E'a\\nb'", Value::Null, "signing_scope"),
        ("signing_scope => 'tenant'", legacy.clone(), "signing_scope"),
        (
            "sealed => '\\x00', sealed_nonce => '\\x000000000000000000000000', sealed_with => 'k'",
            legacy,
            "token",
        ),
    ] {
        let config =
            json!({ "url": "https://b.example/", "operation_id": "op", "authentication": authentication });
        let sql = format!("SELECT taskbell.register_webhook('task_a', $1::text::jsonb, {arguments})::text");
        let error = client.query_one(&sql, &[&config.to_string()]).await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().column(), Some(field), "{arguments}");
    }
    let kept: i64 = client.query_one("SELECT count(*) FROM taskbell.registration", &[]).await.unwrap().get(0);
    assert_eq!(kept, 0);
}
