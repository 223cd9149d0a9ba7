//! What one claim may bring: of each lane, of each account there, of bytes and of retries.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use taskbell::outbox::{CircuitPolicy, Held, Lane, Look, NativeOutbox, Outbox, Room, Verdict};
use taskbell::webhook::FailureReason;
use tokio_postgres::Client;

use super::support::TestDatabase;
use super::support::daemon::outbox_with;
use super::support::owed::{claim, fail, hosts, owe, room, settle, succeed};

fn outbox(database: &TestDatabase) -> NativeOutbox {
    outbox_with(database, std::sync::Arc::default(), CircuitPolicy::default())
}

#[tokio::test]
async fn claims_go_round_hundreds_of_lanes() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    for n in 0..450 {
        owe(&client, &format!("h{n:03}.example"), "a", 2).await;
    }
    owe(&client, "a-backlog.example", "a", 500).await;
    let mut served: HashMap<String, usize> = HashMap::new();
    let mut claims = 0;
    while served.len() < 451 {
        let found = claim(&outbox, 64).await;
        assert!(!found.is_empty());
        claims += 1;
        for (host, n) in hosts(&found) {
            *served.entry(host).or_default() += n;
        }
        succeed(&outbox, &found).await;
    }
    // 450 lanes of two rows and eight of the backlog's a round: some fifteen claims of 64.
    assert!(claims <= 20, "{claims}");
    assert!(served["a-backlog.example"] <= 16, "{}", served["a-backlog.example"]);
}

#[tokio::test]
async fn accounts_that_share_a_destination_share_its_seats() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    for n in 0..40 {
        owe(&client, "shared.example", &format!("later{n:02}"), 2).await;
    }
    let later = "UPDATE taskbell.outbox SET available_at = now() + interval '1 hour'";
    client.execute(later, &[]).await.unwrap();
    for n in 0..40 {
        owe(&client, "shared.example", &format!("acct{n:02}"), 4).await;
    }
    let mut served: HashMap<String, usize> = HashMap::new();
    for _ in 0..15 {
        let claims = claim(&outbox, 128).await;
        let accounts: Vec<&str> = claims.iter().filter_map(|claim| claim.task_id.split('.').nth(2)).collect();
        assert_eq!(accounts.len(), 8, "what waits for later takes no seat");
        for account in accounts {
            *served.entry(account.to_owned()).or_default() += 1;
        }
        succeed(&outbox, &claims).await;
    }
    assert!(served.len() > 30, "{served:?}");
    assert!(served.keys().all(|account| account.starts_with("acct")), "{served:?}");
}

#[tokio::test]
async fn a_claim_brings_no_more_bytes_than_there_is_room_for_and_the_next_goes_on_elsewhere() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    for n in 0..6 {
        owe(&client, &format!("h{n}.example"), "a", 2).await;
    }
    // Of 100 KB, one half of them as text that compresses to next to nothing.
    let large = "UPDATE taskbell.outbox SET document = jsonb_build_object('padding', CASE id % 2
                     WHEN 0 THEN repeat('x', 100000)
                     ELSE (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 3125)) END)";
    client.execute(large, &[]).await.unwrap();
    let claim = async |bytes| {
        let room = Room { bytes, ..room(50) };
        outbox.claim(&room).await.unwrap().claims
    };
    let mut served: HashMap<String, usize> = HashMap::new();
    for _ in 0..3 {
        let claims = claim(150_000).await;
        assert_eq!(claims.len(), 2);
        served.extend(hosts(&claims));
    }
    assert_eq!(served.len(), 6, "{served:?}");
    assert_eq!(claim(1).await.len(), 1, "one is taken whatever its size");
    let rest = claim(1_000_000).await.len() + claim(1_000_000).await.len();
    assert_eq!(rest, 5);
}

#[tokio::test]
async fn slots_are_kept_for_rows_that_were_never_tried() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    owe(&client, "one.example", "a", 2).await;
    let verdict = Verdict::Release { after: Duration::ZERO };
    settle(&outbox, &claim(&outbox, 2).await, verdict, Some(FailureReason::ServerError)).await;
    owe(&client, "two.example", "a", 2).await;
    let room = Room { retries: 0, ..room(10) };
    let claims = outbox.claim(&room).await.unwrap().claims;
    assert_eq!(hosts(&claims), [("two.example".to_owned(), 2)].into());
    assert_eq!(hosts(&claim(&outbox, 10).await), [("one.example".to_owned(), 2)].into());
}

#[tokio::test]
async fn a_claim_takes_no_more_retries_than_there_is_room_for() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    for n in 0..4 {
        owe(&client, &format!("tried{n}.example"), "a", 2).await;
    }
    let verdict = Verdict::Release { after: Duration::ZERO };
    settle(&outbox, &claim(&outbox, 8).await, verdict, Some(FailureReason::ServerError)).await;
    owe(&client, "new.example", "a", 2).await;
    let mut room = room(50);
    room.retries = 3;
    let claims = outbox.claim(&room).await.unwrap().claims;
    assert_eq!(claims.iter().filter(|claim| claim.attempt > 1).count(), 3);
    assert_eq!(hosts(&claims).get("new.example"), Some(&2));
}

/// Retries are drawn by lot: those that are not drawn take no bytes from those that are.
#[tokio::test]
async fn a_claim_takes_something_where_retries_and_bytes_are_short() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    for n in 0..4 {
        owe(&client, &format!("h{n}.example"), "a", 1).await;
    }
    let large = "UPDATE taskbell.outbox SET document = jsonb_build_object('padding', repeat('x', 100000)),
                                            attempt_count = 1";
    client.execute(large, &[]).await.unwrap();
    for left in (1..=4).rev() {
        let room = Room { retries: 1, bytes: 50_000, ..room(50) };
        assert_eq!(outbox.claim(&room).await.unwrap().claims.len(), 1, "of {left}");
    }
}

#[tokio::test]
async fn one_lane_has_its_share_of_the_bytes() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    owe(&client, "large.example", "a", 6).await;
    owe(&client, "other.example", "a", 6).await;
    let large = "UPDATE taskbell.outbox SET context = jsonb_build_object('padding', repeat('x', 100000))
                 WHERE lane LIKE '%large%'";
    client.execute(large, &[]).await.unwrap();
    let mut room = room(50);
    room.bytes_per_lane = 150_000;
    let claims = outbox.claim(&room).await.unwrap().claims;
    assert_eq!(hosts(&claims), [("large.example".to_owned(), 2), ("other.example".to_owned(), 6)].into());
    room.in_flight = vec![(claims[0].lane.clone(), Held { rows: 2, bytes: 100_000 })];
    assert_eq!(hosts(&outbox.claim(&room).await.unwrap().claims).get("large.example"), Some(&1));
    room.in_flight.clear();
    // A body counts for no more than the share: of larger ones as many go as would of those.
    room.bytes_per_lane = 1000;
    room.bytes = 1500;
    assert_eq!(outbox.claim(&room).await.unwrap().claims.len(), 1);
}

#[tokio::test]
async fn what_a_lane_has_no_bytes_for_leaves_the_room_to_the_others() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    for n in 0..6 {
        owe(&client, &format!("h{n}.example"), "a", 8).await;
    }
    // Packed to some kilobytes, it counts as what it unpacks to.
    let large = "UPDATE taskbell.outbox SET document = jsonb_build_object('padding', repeat('x', 100000))";
    client.execute(large, &[]).await.unwrap();
    let room = Room { at_a_lane: 2, bytes_per_lane: 100_000, ..room(12) };
    let claims = outbox.claim(&room).await.unwrap().claims;
    assert_eq!(hosts(&claims).into_values().collect::<Vec<_>>(), [1; 6]);
}

#[tokio::test]
async fn accounts_share_the_bytes_of_their_lane() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    owe(&client, "large.example", "a", 8).await;
    owe(&client, "large.example", "b", 8).await;
    let large = "UPDATE taskbell.outbox SET context = jsonb_build_object('padding', repeat('x', 100000))";
    client.execute(large, &[]).await.unwrap();
    let room = Room { bytes_per_lane: 150_000, ..room(50) };
    let claims = outbox.claim(&room).await.unwrap().claims;
    let accounts: HashSet<&str> = claims.iter().filter_map(|claim| claim.task_id.split('.').nth(2)).collect();
    assert_eq!((claims.len(), accounts.len()), (2, 2));
}

/// What a bell that rang for this host's account `a` is about.
async fn rung(client: &Client, outbox: &NativeOutbox, host: &str, room: Room) -> (usize, bool) {
    let bell = "SELECT taskbell.bell_of('https://' || $1 || ':443', 'a')::bigint";
    let bell: i64 = client.query_one(bell, &[&host]).await.unwrap().get(0);
    let look = Look::At { places: vec![bell], changes: false };
    let claimed = outbox.claim(&Room { look, ..room }).await.unwrap();
    assert!(claimed.claims.iter().all(|claim| claim.lane.0.contains(host)), "{:?}", claimed.claims);
    (claimed.claims.len(), claimed.more)
}

#[tokio::test]
async fn a_bell_brings_what_is_due_at_its_place_and_says_whether_there_may_be_more() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database));
    let known = "known.example";
    owe(&client, known, "a", 1).await;
    owe(&client, "other.example", "a", 1).await;
    succeed(&outbox, &claim(&outbox, 8).await).await;

    assert_eq!(rung(&client, &outbox, known, room(8)).await, (0, false));
    owe(&client, "other.example", "a", 3).await;
    owe(&client, known, "a", 1).await;
    assert_eq!(rung(&client, &outbox, known, room(8)).await, (1, false), "the one that rang");
    assert_eq!(rung(&client, &outbox, known, room(8)).await, (0, false), "it is in flight");
    owe(&client, known, "a", 3).await;
    assert_eq!(rung(&client, &outbox, known, room(8)).await, (3, false), "a transaction may end many tasks");
    owe(&client, known, "a", 9).await;
    assert_eq!(
        rung(&client, &outbox, known, room(20)).await,
        (8, true),
        "no more than the lane has room for"
    );

    let full = vec![(Lane(format!("https://{known}:443")), Held { rows: 8, bytes: 0 })];
    assert_eq!(rung(&client, &outbox, known, Room { in_flight: full, ..room(8) }).await, (0, false));
    assert_eq!(rung(&client, &outbox, known, room(8)).await, (1, false), "it waited for room");
    assert_eq!(claim(&outbox, 20).await.len(), 3, "what is owed elsewhere is not touched");
}

#[tokio::test]
async fn a_bell_finds_no_more_than_circuits_and_retries_allow() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    let policy = CircuitPolicy { failures: 2, ..CircuitPolicy::default() };
    let outbox = outbox_with(&database, std::sync::Arc::default(), policy);
    let sick = "sick.example";
    owe(&client, sick, "a", 1).await;
    fail(&outbox, &claim(&outbox, 8).await).await;
    let no_retries = || Room { retries: 0, ..room(8) };
    assert_eq!(rung(&client, &outbox, sick, no_retries()).await, (0, false), "it failed before");
    fail(&outbox, &claim(&outbox, 8).await).await;
    owe(&client, sick, "a", 4).await;
    assert_eq!(rung(&client, &outbox, sick, room(8)).await, (0, false), "its circuit is closed");
    client.batch_execute("UPDATE taskbell.circuit SET closed_until = now()").await.unwrap();
    let probe = claim(&outbox, 8).await;
    assert_eq!(probe.len(), 1);
    succeed(&outbox, &probe).await;
    assert_eq!(rung(&client, &outbox, sick, room(8)).await, (2, true), "it recovers step by step");
}
