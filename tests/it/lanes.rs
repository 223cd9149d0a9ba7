//! Lanes and their circuits: one destination's trouble is nobody else's, and ends gently.

use std::time::Duration;

use serde_json::json;
use taskbell::outbox::{CircuitPolicy, Claim, Held, NativeOutbox, Outbox, Verdict};
use taskbell::webhook::FailureReason;
use tokio_postgres::Client;

use super::support::TestDatabase;
use super::support::daemon::outbox_with;
use super::support::owed::{claim, fail, hosts, owe, room, settle, succeed};

const POLICY: CircuitPolicy =
    CircuitPolicy { failures: 3, pause: Duration::from_secs(60), max_pause: Duration::from_secs(3600) };

fn outbox(database: &TestDatabase) -> NativeOutbox {
    outbox_with(database, std::sync::Arc::default(), POLICY)
}

/// What `taskbell lanes list` says of one lane: the circuit, its pauses, seconds until it may probe.
async fn circuit(client: &Client, host: &str) -> Option<(bool, i32, f64, Option<i32>)> {
    let sql = "SELECT closed_until IS NOT NULL, pauses, coalesce(extract(epoch FROM closed_until - now()), 0)::float8, recovered
               FROM taskbell.circuit WHERE lane = 'https://' || $1 || ':443'";
    let row = client.query_opt(sql, &[&host]).await.unwrap()?;
    Some((row.get(0), row.get(1), row.get(2), row.get(3)))
}

async fn let_the_pause_pass(client: &Client) {
    client
        .batch_execute("UPDATE taskbell.circuit SET closed_until = now() WHERE closed_until IS NOT NULL")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_lane_that_fails_is_left_alone_and_its_rows_burn_no_attempts() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    owe(&client, "dead.example", "a", 100).await;
    owe(&client, "well.example", "a", 20).await;
    let first = claim(&outbox, 16).await;
    let (dead, well): (Vec<Claim>, Vec<Claim>) =
        first.into_iter().partition(|claim| claim.lane.0.contains("dead"));
    assert_eq!((dead.len(), well.len()), (8, 8));
    fail(&outbox, &dead[..2]).await;
    assert!(!circuit(&client, "dead.example").await.unwrap().0, "two failures close nothing");
    fail(&outbox, &dead[2..]).await;
    let (closed, pauses, seconds, _) = circuit(&client, "dead.example").await.unwrap();
    assert!(closed && pauses == 1 && (40.0..80.0).contains(&seconds), "{seconds}");
    succeed(&outbox, &well).await;
    let next = claim(&outbox, 50).await;
    assert_eq!(hosts(&next), [("well.example".to_owned(), 8)].into());
    succeed(&outbox, &next).await;
    succeed(&outbox, &claim(&outbox, 50).await).await;
    assert!(claim(&outbox, 50).await.is_empty());
    // Nothing is due before the pause is over, and whoever waits knows when.
    let due = outbox.next_due().await.unwrap().unwrap();
    assert!((30..=80).contains(&due.as_secs()), "{due:?}");
    let attempted: i64 = client
        .query_one("SELECT count(*) FROM taskbell.outbox WHERE attempt_count > 0", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(attempted, 8);
}

#[tokio::test]
async fn one_daemon_probes_and_what_recovers_gets_more_room_step_by_step() {
    let database = TestDatabase::migrated().await;
    let (client, one, other) = (database.client().await, outbox(&database), outbox(&database));
    owe(&client, "dead.example", "a", 100).await;
    fail(&one, &claim(&one, 8).await).await;
    let_the_pause_pass(&client).await;
    let (mine, theirs) = tokio::join!(claim(&one, 50), claim(&other, 50));
    let probe: Vec<Claim> = mine.into_iter().chain(theirs).collect();
    assert_eq!(probe.len(), 1, "one probe for both");
    assert!(claim(&other, 50).await.is_empty());
    fail(&one, &probe).await;
    let (closed, pauses, seconds, _) = circuit(&client, "dead.example").await.unwrap();
    assert!(closed && pauses == 2 && (85.0..155.0).contains(&seconds), "twice as long: {seconds}");
    let_the_pause_pass(&client).await;
    let probe = claim(&other, 50).await;
    succeed(&other, &probe).await;
    let mut sizes = Vec::new();
    while circuit(&client, "dead.example").await.is_some() {
        let claims = claim(&one, 50).await;
        sizes.push(claims.len());
        succeed(&one, &claims).await;
    }
    assert_eq!(sizes, [2, 4, 8, 8, 8, 8], "and then it is like any other");
    // A failure on the way back closes it again at once.
    fail(&one, &claim(&one, 8).await).await;
    let_the_pause_pass(&client).await;
    succeed(&one, &claim(&one, 8).await).await;
    fail(&one, &claim(&one, 1).await).await;
    assert!(circuit(&client, "dead.example").await.unwrap().0);
    let opened: i64 = client
        .query_one("SELECT taskbell.open_circuits('https://dead.example:443')", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!((opened, claim(&one, 50).await.len()), (1, 1));
}

#[tokio::test]
async fn opening_a_lane_makes_due_what_waits_there_for_its_next_try() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    owe(&client, "dead.example", "a", 4).await;
    owe(&client, "dead.example", "b", 2).await;
    owe(&client, "well.example", "a", 1).await;
    let mut claims = claim(&outbox, 50).await;
    assert_eq!(claims.len(), 7);
    let one = claims.iter().position(|claim| claim.task_id.starts_with("dead.example.a")).unwrap();
    let in_flight = claims.swap_remove(one);
    let later = Verdict::Release { after: Duration::from_secs(3600) };
    settle(&outbox, &claims, later, Some(FailureReason::Timeout)).await;
    let due = async || {
        let sql = "SELECT regexp_replace(task_id, '\\.[0-9]+$', ''), count(*) FROM taskbell.outbox
                   WHERE state = 'pending' AND available_at <= now() GROUP BY 1 ORDER BY 1";
        let rows = client.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<(String, i64)>>()
    };
    assert!(due().await.is_empty());
    let open = async |account: Option<&str>| {
        let sql = "SELECT taskbell.open_circuits('https://dead.example:443', $1)";
        client.query_one(sql, &[&account]).await.unwrap().get::<_, i64>(0)
    };
    assert_eq!(open(Some("a")).await, 1);
    assert_eq!(due().await, [("dead.example.a".to_owned(), 3)]);
    assert_eq!(open(None).await, 0, "b had not failed often enough to be closed");
    assert_eq!(due().await, [("dead.example.a".to_owned(), 3), ("dead.example.b".to_owned(), 2)]);
    // One goes first, and that is the one in flight, whose lease runs on.
    let others = claim(&outbox, 50).await;
    assert_eq!(others.len(), 2);
    assert!(others.iter().all(|claim| claim.task_id.starts_with("dead.example.b")));
    succeed(&outbox, &[in_flight]).await;
    assert_eq!(claim(&outbox, 50).await.len(), 2);
}

#[tokio::test]
async fn one_buyers_revoked_credential_does_not_close_the_receiver_for_others() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    owe(&client, "shared.example", "revoked", 20).await;
    fail(&outbox, &claim(&outbox, 8).await).await;
    owe(&client, "shared.example", "fine", 20).await;
    let claims = claim(&outbox, 50).await;
    assert_eq!(claims.len(), 8, "the destination's own limit counts for both");
    assert!(claims.iter().all(|claim| claim.task_id.starts_with("shared.example.fine")));
}

#[tokio::test]
async fn after_a_probes_success_accounts_closed_for_the_destinations_sake_probe_soon_too() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    let verdict = Verdict::Release { after: Duration::ZERO };
    for (host, account, reason) in [
        ("shared.example", "a", FailureReason::Timeout),
        ("shared.example", "b", FailureReason::ServerError),
        ("shared.example", "c", FailureReason::Connect),
        ("shared.example", "revoked", FailureReason::Unauthorized),
        ("other.example", "a", FailureReason::ServerError),
    ] {
        owe(&client, host, account, 8).await;
        settle(&outbox, &claim(&outbox, 8).await, verdict, Some(reason)).await;
    }
    let wait = async |host: &str, account: &str| {
        let sql = "SELECT extract(epoch FROM closed_until - now())::float8, pauses FROM taskbell.circuit
                   WHERE lane = 'https://' || $1 || ':443' AND account_id = $2";
        let row = client.query_one(sql, &[&host, &account]).await.unwrap();
        (row.get::<_, f64>(0), row.get::<_, i32>(1))
    };
    let let_pass = async |account: &str, seconds: f64| {
        let sql = "UPDATE taskbell.circuit SET closed_until = now() + $2 * interval '1 second'
                   WHERE lane = 'https://shared.example:443' AND account_id = $1";
        client.execute(sql, &[&account, &seconds]).await.unwrap();
    };
    owe(&client, "shared.example", "well", 8).await;
    succeed(&outbox, &claim(&outbox, 8).await).await;
    assert!(wait("shared.example", "b").await.0 > 40.0, "no probe has succeeded");
    let_pass("a", 0.0).await;
    let_pass("c", 0.5).await;
    let probe = claim(&outbox, 50).await;
    assert_eq!(probe.len(), 1);
    succeed(&outbox, &probe).await;
    let (seconds, pauses) = wait("shared.example", "b").await;
    assert!(seconds < 2.0 && pauses == 0, "{seconds}");
    assert!(wait("shared.example", "c").await.0 < 0.5, "never later than it would have been");
    for (host, account) in [("shared.example", "revoked"), ("other.example", "a")] {
        assert!(wait(host, account).await.0 > 40.0, "{host} {account} has a trouble of its own");
    }
    // One that was asked too early waits as long again as it had to, not twice as long.
    let_pass("b", 0.0).await;
    let mut claims = claim(&outbox, 50).await;
    claims.retain(|claim| claim.task_id.starts_with("shared.example.b"));
    assert_eq!(claims.len(), 1);
    fail(&outbox, &claims).await;
    let (seconds, pauses) = wait("shared.example", "b").await;
    assert!((40.0..80.0).contains(&seconds) && pauses == 1, "{seconds}");
}

#[tokio::test]
async fn what_probes_because_another_did_is_spread_over_two_seconds() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    owe(&client, "dead.example", "a", 8).await;
    fail(&outbox, &claim(&outbox, 8).await).await;
    let_the_pause_pass(&client).await;
    let sql = "INSERT INTO taskbell.circuit (lane, account_id, failures, pauses, closed_until, last_reason)
               SELECT 'https://dead.example:443', 's' || n, 5, 7, now() + interval '5 minutes', 'connect'
               FROM generate_series(1, 100) AS n";
    client.execute(sql, &[]).await.unwrap();
    succeed(&outbox, &claim(&outbox, 50).await).await;
    let sql = "SELECT count(*) FILTER (WHERE closed_until < failing_since + interval '1 second'),
                      count(*) FILTER (WHERE closed_until > failing_since + interval '3 seconds')
               FROM taskbell.circuit WHERE account_id LIKE 's%'";
    let row = client.query_one(sql, &[]).await.unwrap();
    let (within_a_second, later): (i64, i64) = (row.get(0), row.get(1));
    assert!((20..80).contains(&within_a_second) && later == 0, "{within_a_second} {later}");
}

#[tokio::test]
async fn what_recovers_has_no_more_in_flight_than_its_successes_allow() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    owe(&client, "dead.example", "a", 100).await;
    fail(&outbox, &claim(&outbox, 8).await).await;
    let_the_pause_pass(&client).await;
    succeed(&outbox, &claim(&outbox, 8).await).await;
    let mut room = room(50);
    let first = outbox.claim(&room).await.unwrap().claims;
    assert_eq!(first.len(), 2);
    room.in_flight = vec![(first[0].lane.clone(), Held { rows: 2, bytes: 0 })];
    assert!(outbox.claim(&room).await.unwrap().claims.is_empty());
    succeed(&outbox, &first[..1]).await;
    room.in_flight = vec![(first[0].lane.clone(), Held { rows: 1, bytes: 0 })];
    assert_eq!(outbox.claim(&room).await.unwrap().claims.len(), 2);
}

#[tokio::test]
async fn operators_see_the_lanes_and_open_them() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    owe(&client, "dead.example", "a", 10).await;
    fail(&outbox, &claim(&outbox, 8).await).await;
    let taskbell =
        async |arguments: &[&str]| super::cli::run(super::cli::taskbell(Some(&database), arguments)).await;
    let listed = taskbell(&["lanes", "list", "--json"]).await;
    let lane: serde_json::Value = serde_json::from_str(listed.out.trim()).unwrap();
    assert_eq!(lane["lane"], "https://dead.example:443");
    assert_eq!(
        (&lane["circuit"], &lane["owed"], &lane["last_reason"]),
        (&json!("closed"), &json!(10), &json!("timeout"))
    );
    assert_eq!(taskbell(&["lanes", "open", "https://dead.example:443"]).await.out, "1 circuits opened\n");
    assert!(taskbell(&["lanes", "list"]).await.out.contains("recovering"));
}

#[tokio::test]
async fn dead_letters_are_sent_again_by_what_they_have_in_common_and_not_all_at_once() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    owe(&client, "one.example", "a", 4).await;
    owe(&client, "two.example", "b", 4).await;
    let (one, two): (Vec<Claim>, Vec<Claim>) =
        claim(&outbox, 50).await.into_iter().partition(|claim| claim.lane.0.contains("one"));
    settle(&outbox, &one, Verdict::DeadLetter, Some(FailureReason::SignatureRefused)).await;
    settle(&outbox, &two, Verdict::DeadLetter, Some(FailureReason::Gone)).await;
    let taskbell = async |arguments: &[&str]| {
        let said = super::cli::run(super::cli::taskbell(
            Some(&database),
            &[&["deliveries", "retry"], arguments].concat(),
        ))
        .await;
        assert_eq!(said.code, 0, "{said:?}");
        said.out
    };
    assert!(taskbell(&["--all", "--dry-run"]).await.ends_with("8 webhooks would be sent again\n"));
    assert!(claim(&outbox, 50).await.is_empty(), "a dry run changes nothing");
    assert!(taskbell(&["--older-than", "1h"]).await.ends_with("0 webhooks are sent again\n"));
    assert!(taskbell(&["--reason", "gone", "--account", "a"]).await.ends_with("0 webhooks are sent again\n"));
    let said = taskbell(&["--lane", "https://one.example:443", "--rate", "0.01"]).await;
    assert!(said.ends_with("4 webhooks are sent again\n"), "{said}");
    let due = claim(&outbox, 50).await;
    assert_eq!(hosts(&due), [("one.example".to_owned(), 1)].into(), "one every hundred seconds");
    assert_eq!(due[0].attempt, 2);
    assert!(taskbell(&["--reason", "gone"]).await.ends_with("4 webhooks are sent again\n"));
}

#[tokio::test]
async fn more_dead_letters_than_one_statement_takes_are_sent_again_one_after_the_other() {
    const MANY: i64 = 20_500;
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    owe(&client, "one.example", "a", MANY).await;
    let dead = "UPDATE taskbell.outbox SET state = 'expired', available_at = NULL, last_reason = 'timeout'";
    client.batch_execute(dead).await.unwrap();
    let retry = ["deliveries", "retry", "--all", "--rate", "1000"];
    for (arguments, word, pending) in [(&["--dry-run"][..], "would be", 0), (&[], "are", MANY)] {
        let said =
            super::cli::run(super::cli::taskbell(Some(&database), &[&retry, arguments].concat())).await;
        assert!(said.out.ends_with(&format!("{MANY} webhooks {word} sent again\n")), "{}", said.err);
        let sql = "SELECT count(*), count(DISTINCT available_at),
                          coalesce(extract(epoch FROM max(available_at) - min(available_at)), 0)::float8
                   FROM taskbell.outbox WHERE state = 'pending'";
        let row = client.query_one(sql, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (pending, pending));
        let apart = row.get::<_, f64>(2) - 0.001 * (pending - 1).max(0) as f64;
        assert!(apart.abs() < 0.01, "a thousand a second: {apart}");
    }
    // Two a horizon: the third would only expire again.
    client
        .batch_execute(&format!(
            "{dead}, retry_until = now() + interval '1 hour', first_attempt_at = now()
                                    WHERE id IN (SELECT id FROM taskbell.outbox ORDER BY id LIMIT 3)"
        ))
        .await
        .unwrap();
    let slow = ["deliveries", "retry", "--all", "--rate", "0.0005"];
    let said = super::cli::run(super::cli::taskbell(Some(&database), &slow)).await;
    assert!(said.out.contains("\n1 would be due only after their horizon"), "{said:?}");
    assert!(said.out.ends_with("2 webhooks are sent again\n"), "{said:?}");
    let left: i64 = client
        .query_one(
            "SELECT count(*) FROM taskbell.outbox WHERE state = 'expired' AND available_at IS NULL",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 1, "it stays dead");
}
