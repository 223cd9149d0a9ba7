//! The whole way of a delivery: real database, real worker, real TLS receiver.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use taskbell::outbox::{Entered, Held, NativeOutbox, Outbox, Room, Settlement, Transition, Verdict};
use taskbell::webhook::FailureReason;
use taskbell::worker::RetryPolicy;

use super::support::daemon::{Daemon, delivery, delivery_in};
use super::support::owed::room;
use super::support::receiver::Receiver;
use super::support::{self, TestDatabase, complete, eventually, issue};

fn outbox(database: &TestDatabase) -> NativeOutbox {
    support::daemon::outbox(database, Arc::default())
}

#[tokio::test]
async fn a_completed_task_rings_its_buyer_once_signed_and_is_journaled() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let daemon = Daemon::start(&database, &receiver, |_| {}).await;
    let client = database.client().await;
    let url = receiver.url("/ok/a?secret=1");
    issue(&client, "task_a", Some(&url)).await;
    client.batch_execute("UPDATE decisioning_tasks SET state = 'working'").await.unwrap();
    complete(&client, "task_a").await;
    let settled = delivery_in(&client, "task_a", "delivered").await;
    assert_eq!(settled["attempt_count"], 1);
    assert!(!settled["url"].as_str().unwrap().contains("secret"));
    let posts = receiver.posts();
    assert_eq!(posts.len(), 1);
    assert_eq!(daemon.verify(&posts[0], &url), Ok("test-key".to_owned()));
    let body = posts[0].json();
    assert_eq!(body["task_id"], "task_a");
    assert_eq!(body["operation_id"], "op_task_a");
    assert_eq!(body["notification_id"], "task_a.terminal");
    assert!(String::from_utf8_lossy(&posts[0].body).contains(r#""result":{"n":1.50}"#));
    // A change that nobody is owed a webhook for keeps none waiting: it may be written a little later.
    let timeline = "SELECT array_agg(to_state ORDER BY outbox_id) FROM taskbell.transition";
    eventually("the whole timeline", async || {
        let states: Vec<String> = client.query_one(timeline, &[]).await.unwrap().get(0);
        (states == ["submitted", "working", "completed"]).then_some(())
    })
    .await;
    for empty in ["taskbell.outbox", "taskbell.registration"] {
        let rows: i64 = client.query_one(&format!("SELECT count(*) FROM {empty}"), &[]).await.unwrap().get(0);
        assert_eq!(rows, 0, "{empty}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn every_attempt_has_one_key_and_one_body_and_a_fresh_nonce() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let daemon = Daemon::start(&database, &receiver, |_| {}).await;
    let client = database.client().await;
    issue(&client, "task_a", Some(&receiver.url("/once"))).await;
    complete(&client, "task_a").await;
    let settled = delivery_in(&client, "task_a", "delivered").await;
    assert_eq!(settled["attempt_count"], 2);
    let posts = receiver.posts();
    assert_eq!(posts.len(), 2);
    assert_eq!(posts[0].body, posts[1].body);
    assert_ne!(posts[0].headers["signature-input"], posts[1].headers["signature-input"]);
    let attempts =
        client.query("SELECT status, verdict FROM taskbell.attempt ORDER BY attempt", &[]).await.unwrap();
    let attempts: Vec<(Option<i32>, String)> = attempts.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(attempts, [(Some(503), "release".to_owned()), (Some(200), "acknowledge".to_owned())]);
    daemon.stop().await;
}

#[tokio::test]
async fn each_kind_of_failure_has_its_reason() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let slow = RetryPolicy { schedule: vec![Duration::from_secs(600)], jitter: 0.0 };
    let daemon = Daemon::start(&database, &receiver, |tuning| tuning.worker.retry = slow).await;
    let client = database.client().await;
    let other_name = receiver.url("/ok").replace("localhost", "ip6-localhost");
    for (task, url, state, reason) in [
        ("hang", receiver.url("/hang"), "pending", "timeout"),
        ("close", receiver.url("/close"), "pending", "reset"),
        ("error", receiver.url("/500"), "pending", "server_error"),
        ("later", receiver.url("/later"), "pending", "throttled"),
        ("lost", receiver.url("/404"), "pending", "unauthorized"),
        ("moved", receiver.url("/redirect"), "invalid", "redirected"),
        ("gone", receiver.url("/410"), "invalid", "gone"),
        ("bound", receiver.url("/409"), "invalid", "key_conflict"),
        ("bad", receiver.url("/422"), "invalid", "rejected"),
        ("forged", receiver.url("/signature"), "invalid", "signature_refused"),
        ("refused", "https://localhost:1/".to_owned(), "pending", "connect"),
        ("nowhere", "https://no-such-host.invalid/".to_owned(), "pending", "dns"),
        ("inside", "https://169.254.169.254/".to_owned(), "invalid", "address_refused"),
        ("name", other_name.replace("ip6-localhost", "127.0.0.2"), "pending", "connect"),
    ] {
        let task = format!("task_{task}");
        issue(&client, &task, Some(&url)).await;
        complete(&client, &task).await;
        let settled = eventually(&task, async || {
            let found = delivery(&client, &task).await;
            (!found["last_reason"].is_null()).then_some(found)
        })
        .await;
        assert_eq!(
            (settled["state"].as_str(), settled["last_reason"].as_str()),
            (Some(state), Some(reason)),
            "{task}"
        );
        assert_eq!(settled["attempt_count"], 1, "{task}");
    }
    issue(&client, "task_big", Some(&receiver.url("/big"))).await;
    complete(&client, "task_big").await;
    delivery_in(&client, "task_big", "delivered").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_receiver_with_an_unknown_certificate_gets_nothing() {
    let (database, receiver, stranger) =
        (TestDatabase::migrated().await, Receiver::start().await, Receiver::start().await);
    let daemon = Daemon::start(&database, &receiver, |_| {}).await;
    let client = database.client().await;
    issue(&client, "task_a", Some(&stranger.url("/ok"))).await;
    complete(&client, "task_a").await;
    eventually("the reason", async || {
        (delivery(&client, "task_a").await["last_reason"] == "tls").then_some(())
    })
    .await;
    assert!(stranger.posts().is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn bodies_beyond_the_limit_go_one_after_the_other() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let client = database.client().await;
    for n in 0..6 {
        let task = format!("task_{n}");
        issue(&client, &task, Some(&receiver.url("/hang"))).await;
        complete(&client, &task).await;
    }
    let daemon = Daemon::start(&database, &receiver, |tuning| {
        tuning.worker.payload = 1;
        tuning.worker.deadline = Duration::from_millis(100);
        tuning.worker.retry = RetryPolicy { schedule: vec![Duration::from_secs(60)], jitter: 0.0 };
    })
    .await;
    let sql =
        "SELECT count(*) FILTER (WHERE state = 'in_flight'), sum(attempt_count)::bigint FROM taskbell.outbox";
    eventually("six attempts", async || {
        let row = client.query_one(sql, &[]).await.unwrap();
        let (in_flight, attempts): (i64, i64) = (row.get(0), row.get(1));
        // One on the wire, beside what has only just ended and is not written yet.
        assert!(in_flight <= 3, "{in_flight} at once");
        (attempts == 6).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_found_no_seat_at_its_bell_does_not_wait_for_another() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let client = database.client().await;
    let daemon = Daemon::start(&database, &receiver, |tuning| {
        tuning.worker.safety_poll = Duration::from_secs(3600);
    })
    .await;
    let url = receiver.url("/ok");
    for (account, tasks) in [("one", 2), ("many", 14)] {
        for n in 0..tasks {
            let task = format!("{account}_{n}");
            client
                .execute(&support::INSERT.replace("'acct'", &format!("'{account}'")), &[&task])
                .await
                .unwrap();
            let config = json!({ "url": url, "operation_id": task }).to_string();
            let register = "SELECT taskbell.register_webhook($1, $2::text::jsonb)::text";
            client.query_one(register, &[&task, &config]).await.unwrap();
        }
    }
    // Now both places are known to a bell.
    for (n, task) in ["one_0", "many_0"].into_iter().enumerate() {
        complete(&client, task).await;
        eventually(task, async || (receiver.posts().len() > n).then_some(())).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Half of the eight seats are for the account that has one row.
    let all = "UPDATE decisioning_tasks SET state = 'completed' WHERE state = 'submitted'";
    client.batch_execute(all).await.unwrap();
    eventually("all of them", async || (receiver.posts().len() == 16).then_some(())).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_stop_gives_back_what_hangs_without_burning_an_attempt() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let daemon =
        Daemon::start(&database, &receiver, |tuning| tuning.worker.grace = Duration::from_millis(50)).await;
    let client = database.client().await;
    issue(&client, "task_a", Some(&receiver.url("/hang"))).await;
    complete(&client, "task_a").await;
    eventually("the attempt", async || (receiver.posts().len() == 1).then_some(())).await;
    daemon.stop().await;
    let owed = delivery(&client, "task_a").await;
    assert_eq!((owed["state"].as_str(), owed["attempt_count"].as_i64()), (Some("pending"), Some(0)));
    assert!(owed["first_attempt_at"].is_null());
}

#[tokio::test]
async fn a_lost_lease_settles_nothing_and_the_row_is_claimed_again() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    issue(&client, "task_a", Some("https://b.example/")).await;
    complete(&client, "task_a").await;
    let first = outbox.claim(&room(5)).await.unwrap().claims.remove(0);
    assert!(outbox.claim(&room(5)).await.unwrap().claims.is_empty());
    client
        .batch_execute("UPDATE taskbell.outbox SET lease_expires_at = now() - interval '1 second'")
        .await
        .unwrap();
    let second = outbox.claim(&room(5)).await.unwrap().claims.remove(0);
    assert_eq!((first.attempt, second.attempt), (1, 2));
    assert_eq!(first.prepared.as_ref().unwrap().body, second.prepared.as_ref().unwrap().body);
    let settle = |claim: &taskbell::outbox::Claim, verdict, reason| Settlement {
        row: claim.row,
        lease: claim.lease,
        verdict,
        reason,
        attempt: None,
    };
    let late = settle(&first, Verdict::DeadLetter, Some(FailureReason::Gone));
    assert_eq!(outbox.settle(&[late]).await.unwrap().lost, [first.row]);
    assert_eq!(delivery(&client, "task_a").await["state"], "in_flight");
    let gone = settle(&second, Verdict::DeadLetter, Some(FailureReason::Gone));
    assert!(outbox.settle(&[gone]).await.unwrap().lost.is_empty());
    assert_eq!(delivery(&client, "task_a").await["state"], "invalid");
    assert!(outbox.claim(&room(5)).await.unwrap().claims.is_empty());
}

#[tokio::test]
async fn one_lane_gets_only_the_slots_it_has() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    for n in 0..12 {
        let task = format!("task_{n}");
        let url = if n < 9 { "https://busy.example/" } else { "https://calm.example/" };
        issue(&client, &task, Some(url)).await;
        complete(&client, &task).await;
    }
    let claimed = outbox.claim(&Room::of(10, 2)).await.unwrap().claims;
    let of = |lane: &str| claimed.iter().filter(|claim| claim.lane.0 == lane).count();
    assert_eq!((of("https://busy.example:443"), of("https://calm.example:443")), (2, 2));
    let busy = claimed.iter().find(|claim| claim.lane.0.contains("busy")).unwrap().lane.clone();
    let rest = outbox
        .claim(&Room { in_flight: vec![(busy, Held { rows: 2, bytes: 0 })], ..Room::of(10, 2) })
        .await
        .unwrap()
        .claims;
    assert_eq!(rest.len(), 1);
}

/// Nobody may claim it, so nobody is woken for it, not even once its lease is over. The sweep gives it its name.
#[tokio::test]
async fn what_is_past_its_horizon_wakes_nobody_and_dies_in_the_sweep() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    issue(&client, "task_a", Some("https://b.example/")).await;
    complete(&client, "task_a").await;
    assert_eq!(outbox.next_due().await.unwrap(), Some(Duration::ZERO));
    assert_eq!(outbox.claim(&room(1)).await.unwrap().claims.len(), 1);
    assert!(outbox.next_due().await.unwrap().unwrap() > Duration::ZERO, "its lease");
    let over = "UPDATE taskbell.outbox SET lease_expires_at = now() - interval '1 minute',
                retry_until = now() - interval '2 minutes'";
    client.batch_execute(over).await.unwrap();
    assert!(outbox.claim(&room(1)).await.unwrap().claims.is_empty());
    assert_eq!(outbox.next_due().await.unwrap(), None);
    client
        .batch_execute(
            "UPDATE taskbell.outbox SET lease_expires_at = NULL, lease_token = NULL, state = 'pending'",
        )
        .await
        .unwrap();
    assert_eq!(outbox.next_due().await.unwrap(), None);
    assert_eq!(outbox.expire().await.unwrap(), 1);
    assert_eq!(delivery(&client, "task_a").await["state"], "expired");
}

#[tokio::test]
async fn past_the_horizon_a_row_expires_and_only_a_person_sends_it_again() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    issue(&client, "task_a", Some("https://b.example/")).await;
    complete(&client, "task_a").await;
    let claim = outbox.claim(&room(1)).await.unwrap().claims.remove(0);
    let after = claim.horizon + Duration::from_secs(1);
    let release = Settlement {
        row: claim.row,
        lease: claim.lease,
        verdict: Verdict::Release { after },
        reason: Some(FailureReason::Timeout),
        attempt: None,
    };
    assert_eq!(outbox.settle(&[release]).await.unwrap().expired, [claim.row]);
    assert_eq!(delivery(&client, "task_a").await["state"], "expired");
    let past = "UPDATE taskbell.outbox SET first_attempt_at = now() - interval '25 hours', retry_until = now() - interval '1 hour'";
    client.batch_execute(past).await.unwrap();
    let refused =
        client.query_one("SELECT taskbell.retry_delivery($1)::text", &[&claim.row.id]).await.unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("horizon"));
    client.query_one("SELECT taskbell.retry_delivery($1, true)::text", &[&claim.row.id]).await.unwrap();
    let again = outbox.claim(&room(1)).await.unwrap().claims.remove(0);
    assert_eq!(again.prepared.unwrap().body, claim.prepared.unwrap().body);
    client.query_one("SELECT taskbell.cancel_delivery($1)::text", &[&claim.row.id]).await.unwrap();
    assert_eq!(delivery(&client, "task_a").await["state"], "cancelled");
}

#[tokio::test]
async fn what_cannot_be_rendered_is_a_dead_letter_and_the_rest_goes_on() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let client = database.client().await;
    issue(&client, "task_a", Some(&receiver.url("/ok"))).await;
    issue(&client, "task_b", Some(&receiver.url("/ok"))).await;
    client
        .batch_execute("UPDATE taskbell.registration SET operation_id = 'a b' WHERE task_id = 'task_a'")
        .await
        .unwrap();
    complete(&client, "task_a").await;
    complete(&client, "task_b").await;
    let daemon = Daemon::start(&database, &receiver, |_| {}).await;
    let dead = delivery_in(&client, "task_a", "invalid").await;
    assert_eq!(dead["last_reason"], "registration_malformed");
    delivery_in(&client, "task_b", "delivered").await;
    daemon.stop().await;
}

#[tokio::test]
async fn each_transition_is_handed_out_once_and_the_journal_knows_the_one_before_it() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    let changes = async || outbox.claim(&room(5)).await.unwrap().transitions;
    issue(&client, "task_b", None).await;
    issue(&client, "task_a", None).await;
    let first = changes().await;
    assert_eq!((first[0].from.as_deref(), first[0].to.as_str()), (None, "submitted"));
    client
        .batch_execute("UPDATE decisioning_tasks SET state = 'working' WHERE task_id = 'task_a'")
        .await
        .unwrap();
    let second = changes().await;
    complete(&client, "task_a").await;
    let (none, some) = (room(0), room(5));
    let (one, other) = tokio::join!(outbox.claim(&none), outbox.claim(&some));
    let third: Vec<_> = one.unwrap().transitions.into_iter().chain(other.unwrap().transitions).collect();
    assert_eq!(third.len(), 1);
    assert_eq!(json!(third[0].to), "completed");
    // Each in its place, whatever came later: all three are in the journal by now.
    let asked = [&second[..], &first[..], &third[..]].concat();
    let entered =
        |change: &Transition| Some(Entered { id: change.id, state: change.to.clone(), at: change.at });
    let submitted = first.iter().find(|change| change.task.1 == "task_a").unwrap();
    assert_eq!(outbox.before(&asked).await.unwrap(), [entered(submitted), None, None, entered(&second[0])]);
    // Where one of them does not say when its task was created, all days are looked at.
    let undated =
        asked.into_iter().map(|change| Transition { task_created_at: None, ..change }).collect::<Vec<_>>();
    assert_eq!(outbox.before(&undated).await.unwrap()[3], entered(&second[0]));
}

#[tokio::test]
async fn a_row_that_was_given_back_is_not_observed_again() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    issue(&client, "task_a", Some("https://b.example/")).await;
    complete(&client, "task_a").await;
    let claimed = outbox.claim(&room(1)).await.unwrap();
    assert_eq!(claimed.transitions.len(), 2, "its insert and its end");
    let settle = |claim: &taskbell::outbox::Claim, verdict, reason| Settlement {
        row: claim.row,
        lease: claim.lease,
        verdict,
        reason,
        attempt: None,
    };
    let back = Verdict::Unclaim { after: Duration::ZERO };
    outbox.settle(&[settle(&claimed.claims[0], back, None)]).await.unwrap();
    let again = outbox.claim(&room(1)).await.unwrap();
    assert_eq!((again.claims[0].attempt, again.claims[0].is_new, again.transitions.len()), (1, false, 0));
    let dead = settle(&again.claims[0], Verdict::DeadLetter, Some(FailureReason::Gone));
    outbox.settle(&[dead]).await.unwrap();
    client
        .query_one("SELECT taskbell.retry_delivery($1, true)::text", &[&again.claims[0].row.id])
        .await
        .unwrap();
    let retried = outbox.claim(&room(1)).await.unwrap();
    assert_eq!((retried.claims[0].attempt, retried.transitions.len()), (2, 0));
}
