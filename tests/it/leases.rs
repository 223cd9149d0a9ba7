//! Claims and settles while the database answers half, late, or not at all.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use taskbell::outbox::{
    Attempt, Claim, NativeOptions, NativeOutbox, Outbox, OutboxError, Settlement, Verdict,
};
use taskbell::task::UrlSchemes;
use taskbell::webhook::FailureReason;
use tokio::time::sleep;
use tokio_postgres::Client;

use super::support::daemon::{Daemon, delivery, delivery_in};
use super::support::owed::room;
use super::support::proxy::Weather;
use super::support::receiver::Receiver;
use super::support::{self, TestDatabase, complete, eventually, issue};

/// From now on a table refuses rows, as on a full disk.
async fn fill_disk(client: &Client, table: &str) {
    let sql = format!(
        "CREATE OR REPLACE FUNCTION public.full() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = '53100'; END $$;
         CREATE TRIGGER full_disk BEFORE INSERT ON taskbell.{table} FOR EACH ROW EXECUTE FUNCTION public.full()"
    );
    client.batch_execute(&sql).await.unwrap();
}

async fn free_disk(client: &Client, table: &str) {
    client.batch_execute(&format!("DROP TRIGGER full_disk ON taskbell.{table}")).await.unwrap();
}

fn outbox(database: &TestDatabase) -> NativeOutbox {
    support::daemon::outbox(database, Arc::default())
}

fn settle(claim: &Claim, verdict: Verdict, attempted: bool) -> Settlement {
    let attempt = Attempt {
        started_at: SystemTime::now(),
        duration: Duration::from_millis(1),
        status: None,
        body_bytes: 2,
    };
    let reason = (verdict != Verdict::Acknowledge).then_some(FailureReason::Timeout);
    Settlement { row: claim.row, lease: claim.lease, verdict, reason, attempt: attempted.then_some(attempt) }
}

#[tokio::test]
async fn of_a_settle_that_fails_by_half_the_other_half_is_written_and_no_lease_is_called_lost() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    for task in ["task_a", "task_b"] {
        issue(&client, task, Some("https://b.example/")).await;
        complete(&client, task).await;
    }
    let claims = outbox.claim(&room(5)).await.unwrap().claims;
    fill_disk(&client, "attempt").await;
    let good = settle(&claims[0], Verdict::Acknowledge, false);
    let bad = settle(&claims[1], Verdict::Release { after: Duration::ZERO }, true);
    let rows = outbox.settle(&[good, bad.clone()]).await.unwrap();
    assert!(rows.lost.is_empty(), "{rows:?}");
    assert_eq!(rows.unwritten, [claims[1].row]);
    assert!(rows.fault.is_some_and(|fault| !fault.leaves_doubt()));
    assert_eq!(delivery(&client, "task_a").await["state"], "delivered");
    free_disk(&client, "attempt").await;
    let rows = outbox.settle(&[bad]).await.unwrap();
    assert!(rows.lost.is_empty() && rows.unwritten.is_empty(), "{rows:?}");
}

#[tokio::test]
async fn a_claim_counts_although_the_journal_could_not_be_written_beside_it() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    fill_disk(&client, "transition").await;
    issue(&client, "task_a", Some("https://b.example/")).await;
    complete(&client, "task_a").await;
    let claimed = outbox.claim(&room(5)).await.unwrap();
    assert_eq!((claimed.claims.len(), claimed.transitions.len()), (1, 1));
    assert!(claimed.fault.is_some());
    free_disk(&client, "transition").await;
    let rest = outbox.claim(&room(5)).await.unwrap();
    assert_eq!((rest.claims.len(), rest.transitions.len()), (0, 1));
    assert!(rest.fault.is_none());
}

#[tokio::test]
async fn a_webhook_that_was_given_back_is_not_observed_again() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    issue(&client, "task_a", Some("https://b.example/")).await;
    outbox.claim(&room(5)).await.unwrap();
    complete(&client, "task_a").await;
    let first = outbox.claim(&room(5)).await.unwrap();
    assert_eq!(first.transitions.len(), 1);
    let back = settle(&first.claims[0], Verdict::Unclaim { after: Duration::ZERO }, false);
    outbox.settle(&[back]).await.unwrap();
    let second = outbox.claim(&room(5)).await.unwrap();
    assert_eq!((second.claims[0].attempt, second.transitions.len()), (1, 0));
}

#[tokio::test]
async fn what_cannot_be_settled_keeps_its_slot_and_is_settled_once_it_can_be() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let client = database.client().await;
    for n in 0..60 {
        issue(&client, &format!("task_{n}"), Some(&receiver.url("/ok"))).await;
        complete(&client, &format!("task_{n}")).await;
    }
    fill_disk(&client, "attempt").await;
    let daemon = Daemon::start(&database, &receiver, |tuning| {
        (tuning.worker.concurrency, tuning.worker.per_lane) = (10, 10);
    })
    .await;
    eventually("some webhooks", async || (receiver.posts().len() >= 10).then_some(())).await;
    // Long enough to have sent everything, and nothing of it settled.
    sleep(Duration::from_millis(1500)).await;
    assert!(receiver.posts().len() <= 20, "{}", receiver.posts().len());
    free_disk(&client, "attempt").await;
    for n in 0..60 {
        delivery_in(&client, &format!("task_{n}"), "delivered").await;
    }
    assert_eq!(receiver.posts().len(), 60);
    daemon.stop().await;
}

#[tokio::test]
async fn one_settlement_that_the_database_refuses_keeps_no_other_from_being_written() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let client = database.client().await;
    for n in 0..20 {
        issue(&client, &format!("task_{n}"), Some(&receiver.url("/ok"))).await;
        complete(&client, &format!("task_{n}")).await;
    }
    let refuse = "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF new.task_id = 'task_7' THEN RAISE EXCEPTION 'not this one'; END IF; RETURN new; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON taskbell.attempt FOR EACH ROW EXECUTE FUNCTION public.refuse()";
    client.batch_execute(refuse).await.unwrap();
    let daemon = Daemon::start(&database, &receiver, |tuning| tuning.worker.per_lane = 20).await;
    for n in (0..20).filter(|n| *n != 7) {
        delivery_in(&client, &format!("task_{n}"), "delivered").await;
    }
    assert_eq!(delivery(&client, "task_7").await["state"], "in_flight");
    // New ones are written at once beside it.
    issue(&client, "task_new", Some(&receiver.url("/ok"))).await;
    complete(&client, "task_new").await;
    delivery_in(&client, "task_new", "delivered").await;
    client.batch_execute("DROP TRIGGER refuse ON taskbell.attempt").await.unwrap();
    delivery_in(&client, "task_7", "delivered").await;
    assert_eq!(receiver.posts().len(), 21);
    daemon.stop().await;
}

#[tokio::test]
async fn nothing_is_sent_that_would_outlive_its_lease() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let client = database.client().await;
    issue(&client, "task_a", Some(&receiver.url("/ok"))).await;
    complete(&client, "task_a").await;
    // As after a freeze: the lease, of a minute, no longer has room for a whole attempt.
    let late = |tuning: &mut support::daemon::Tuning| tuning.worker.deadline = Duration::from_secs(61);
    let daemon = Daemon::start(&database, &receiver, late).await;
    eventually("a claim that was given back", async || {
        let sql = "SELECT 1 FROM taskbell.outbox WHERE state = 'pending' AND observed AND attempt_count = 0";
        client.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    assert!(receiver.posts().is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn a_stop_settles_although_the_first_try_fails() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let client = database.client().await;
    fill_disk(&client, "attempt").await;
    let daemon = Daemon::start(&database, &receiver, |_| {}).await;
    issue(&client, "task_a", Some(&receiver.url("/ok"))).await;
    complete(&client, "task_a").await;
    eventually("the webhook", async || (receiver.posts().len() == 1).then_some(())).await;
    let repair = async {
        sleep(Duration::from_millis(700)).await;
        free_disk(&client, "attempt").await;
    };
    tokio::join!(daemon.stop(), repair);
    assert_eq!(delivery(&client, "task_a").await["state"], "delivered");
}

#[tokio::test]
async fn a_connection_that_went_silent_is_given_up_and_not_used_again() {
    let database = TestDatabase::migrated().await;
    let (far, network) = database.behind_a_proxy().await;
    let options = NativeOptions {
        lease: Duration::from_secs(60),
        horizon: Duration::from_secs(86_400),
        patience: Duration::from_millis(200),
        schemes: UrlSchemes::HttpsOnly,
        sealing: Arc::default(),
        circuits: taskbell::outbox::CircuitPolicy::default(),
    };
    let outbox = NativeOutbox::new(far.pool(), options);
    outbox.claim(&room(1)).await.unwrap();
    network.set(Weather::Silent, || true);
    assert!(matches!(outbox.claim(&room(1)).await, Err(OutboxError::Silent)));
    outbox.claim(&room(1)).await.unwrap();
}

#[tokio::test]
async fn a_daemon_whose_connections_all_went_silent_recovers_and_stops_in_time() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let (far, network) = database.behind_a_proxy().await;
    let client = database.client().await;
    let daemon = Daemon::start(&far, &receiver, |_| {}).await;
    issue(&client, "task_a", Some(&receiver.url("/ok"))).await;
    complete(&client, "task_a").await;
    delivery_in(&client, "task_a", "delivered").await;
    network.set(Weather::Silent, || true);
    issue(&client, "task_b", Some(&receiver.url("/ok"))).await;
    complete(&client, "task_b").await;
    delivery_in(&client, "task_b", "delivered").await;
    network.set_all(Weather::Silent);
    let began = Instant::now();
    daemon.stop().await;
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}
