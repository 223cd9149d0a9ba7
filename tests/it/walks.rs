//! What looks find, and where they need not read.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use taskbell::outbox::{Claim, Look, NativeOutbox, Outbox, Room};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::support::daemon::outbox;
use super::support::owed::{hosts, owe, succeed};
use super::support::{TestDatabase, eventually};

/// Rows that one look at a time brings, until it brings none.
async fn take(outbox: &NativeOutbox, look: Look) -> Vec<Claim> {
    let mut room = Room::of(128, 128);
    room.look = look;
    let mut claims = Vec::new();
    loop {
        let brought = outbox.claim(&room).await.unwrap().claims;
        if brought.is_empty() {
            return claims;
        }
        claims.extend(brought);
    }
}

/// A daemon that has brought much from three destinations, of which nothing is left.
async fn busy(database: &TestDatabase) -> (Client, NativeOutbox) {
    let (client, outbox) = (database.client().await, outbox(database, Arc::default()));
    for host in ["d.example", "h.example", "m.example"] {
        owe(&client, host, "acct", 40).await;
    }
    let claims = take(&outbox, Look::Whole).await;
    assert_eq!(claims.len(), 120);
    succeed(&outbox, &claims).await;
    (client, outbox)
}

#[tokio::test]
async fn a_wide_look_finds_what_is_new_between_before_and_behind_the_places_it_knows() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = busy(&database).await;
    let hosts_owed =
        ["a.example", "b.example", "d.example", "e.example", "f.example", "h.example", "z.example"];
    for host in hosts_owed {
        owe(&client, host, "acct", 2).await;
    }
    owe(&client, "d.example", "acct-of-another", 1).await;
    let mut room = Room::of(128, 128);
    room.look = Look::Wide;
    let claims = outbox.claim(&room).await.unwrap().claims;
    assert_eq!(claims.len(), 15);
    assert_eq!(hosts(&claims).len(), hosts_owed.len());
    // Once more, in small pieces: each look goes on where the one before used up its room.
    for host in hosts_owed {
        owe(&client, host, "acct", 2).await;
    }
    room.rows = 3;
    let mut brought = Vec::new();
    while brought.len() < 14 {
        let claims = outbox.claim(&room).await.unwrap().claims;
        assert!(!claims.is_empty(), "{}", brought.len());
        brought.extend(claims);
    }
    assert!(take(&outbox, Look::Wide).await.is_empty());
}

/// The places that a walk visits, and whether it leaves out something there.
async fn walk(
    client: &Client,
    after: Option<&str>,
    at_most: i64,
    known: &[(&str, bool)],
) -> Vec<(String, bool)> {
    let walk = include_str!("../../src/outbox/native/claim/walk.sql");
    // A statement numbers its parameters without gaps.
    let others = [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13].map(|n| format!("${n}::integer")).join(", ");
    let sql = format!(
        "{walk}), others AS (SELECT {others}) \
         SELECT lane, coalesce(since > now(), false) FROM walk WHERE account_id = 'acct' ORDER BY n"
    );
    let url = |host: &str| format!("https://{host}.example:443");
    let (start, account) = (after.map(url), after.map(|_| "acct"));
    let lanes: Vec<String> = known.iter().map(|(host, _)| url(host)).collect();
    let accounts = vec!["acct"; known.len()];
    let since: Vec<_> =
        known.iter().map(|(_, past)| past.then(|| SystemTime::now() + Duration::from_secs(3600))).collect();
    let no = &None::<i32> as &(dyn ToSql + Sync);
    let mut parameters = vec![no; 18];
    let ours: [(usize, &(dyn ToSql + Sync)); 6] =
        [(9, &at_most), (14, &start), (15, &account), (16, &lanes), (17, &accounts), (18, &since)];
    for (n, value) in ours {
        parameters[n - 1] = value;
    }
    let rows = client.query(&sql, &parameters).await.unwrap();
    let short = |lane: String| lane.replace("https://", "").replace(".example:443", "");
    rows.iter().map(|row| (short(row.get(0)), row.get(1))).collect()
}

#[tokio::test]
async fn a_walk_stands_on_known_places_and_finds_all_others_between() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    for host in ["a", "b", "d", "e", "e2", "h", "z"] {
        owe(&client, &format!("{host}.example"), "acct", 2).await;
    }
    let names =
        |walk: &[(String, bool)]| walk.iter().map(|(host, _)| host.clone()).collect::<Vec<_>>().join(" ");
    assert_eq!(names(&walk(&client, None, 99, &[]).await), "a b d e e2 h z");
    // c and zz have nothing.
    let known = [("c", true), ("d", true), ("e", false), ("h", true), ("zz", true)];
    let found = walk(&client, None, 99, &known).await;
    assert_eq!(names(&found), "a b c d e e2 h z zz");
    let past: Vec<bool> = found.iter().map(|(_, past)| *past).collect();
    assert_eq!(past, [false, false, true, true, false, false, true, false, true]);
    // In pieces, each with what is known beyond its start.
    assert_eq!(names(&walk(&client, None, 4, &known[..4]).await), "a b c d");
    assert_eq!(names(&walk(&client, Some("d"), 4, &known[2..]).await), "e e2 h z");
    assert_eq!(names(&walk(&client, Some("z"), 4, &known[4..]).await), "zz");
    assert_eq!(names(&walk(&client, Some("zz"), 4, &[]).await), "");
}

#[tokio::test]
async fn a_walk_past_thousands_of_places_with_nothing_due_comes_to_the_last_one() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database, Arc::default()));
    let later = "INSERT INTO taskbell.outbox (watch_id, task_id, account_id, task_type, to_state, lane, idempotency_key,
                                              available_at)
                 SELECT 1, n, 'a', 'create_media_buy', 'completed', format('https://h%s.example:443', n), gen_random_uuid(),
                        now() + interval '1 hour'
                 FROM generate_series(1, 5000) AS n";
    client.execute(later, &[]).await.unwrap();
    for look in [Look::Whole, Look::Wide] {
        owe(&client, "z.example", "acct", 1).await;
        let room = Room { look: look.clone(), ..Room::of(128, 128) };
        let mut looks = 1;
        loop {
            let claimed = outbox.claim(&room).await.unwrap();
            if !claimed.claims.is_empty() {
                succeed(&outbox, &claimed.claims).await;
                break;
            }
            assert!(look == Look::Wide && claimed.more, "{look:?} stops without a word");
            looks += 1;
            assert!(looks < 100);
        }
    }
}

/// Rows that a transaction wrote an hour ago and that are only now there to be seen.
async fn owe_an_hour_ago(client: &Client, host: &str, rows: i64) {
    owe(client, host, "acct", rows).await;
    let sql = "UPDATE taskbell.outbox SET available_at = now() - interval '1 hour' WHERE lease_token IS NULL";
    assert_eq!(client.execute(sql, &[]).await.unwrap(), rows.unsigned_abs());
}

#[tokio::test]
async fn what_stands_before_that_which_was_seen_is_found_by_every_look_but_a_quick_one() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = busy(&database).await;
    let bell = "SELECT taskbell.bell_of('https://h.example:443', 'acct')::bigint";
    let bell: i64 = client.query_one(bell, &[]).await.unwrap().get(0);
    for look in [Look::Whole, Look::Wide, Look::At { places: vec![bell], changes: false }] {
        for rows in [1, 3] {
            owe_an_hour_ago(&client, "h.example", rows).await;
            assert!(take(&outbox, Look::Quick).await.is_empty());
            // On a busy machine a wide look may be slow, and the next ones leave out what others found before.
            let mut claims = Vec::new();
            eventually(&format!("{rows} rows, by {look:?}"), async || {
                claims.extend(take(&outbox, look.clone()).await);
                (claims.len() == usize::try_from(rows).unwrap()).then_some(())
            })
            .await;
            succeed(&outbox, &claims).await;
        }
    }
    // A late one beside one that is new: the bell's claim takes both, or says that there may be more.
    owe_an_hour_ago(&client, "h.example", 1).await;
    owe(&client, "h.example", "acct", 1).await;
    let mut room = Room::of(128, 128);
    room.look = Look::At { places: vec![bell], changes: false };
    let claimed = outbox.claim(&room).await.unwrap();
    assert!(claimed.claims.len() == 2 || (claimed.claims.len() == 1 && claimed.missed));
}

/// State changes that nobody is owed a webhook for.
async fn change(client: &Client, task: &str) {
    let sql = "INSERT INTO taskbell.outbox (watch_id, task_id, task_type, to_state)
               VALUES (1, $1, 'create_media_buy', 'working')";
    client.execute(sql, &[&task]).await.unwrap();
}

#[tokio::test]
async fn changes_are_handed_out_once_and_those_of_long_transactions_when_everything_is_read() {
    let database = TestDatabase::migrated().await;
    let (client, outbox) = (database.client().await, outbox(&database, Arc::default()));
    let slow = database.client().await;
    slow.batch_execute("BEGIN").await.unwrap();
    change(&slow, "late").await;
    change(&client, "first").await;
    let handed_out = async |look: Look| -> Vec<String> {
        let mut room = Room::of(8, 8);
        room.look = look;
        let transitions = outbox.claim(&room).await.unwrap().transitions;
        transitions.into_iter().map(|transition| transition.task.1).collect()
    };
    assert_eq!(handed_out(Look::Wide).await, ["first"]);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    slow.batch_execute("COMMIT").await.unwrap();
    change(&client, "second").await;
    assert_eq!(handed_out(Look::Quick).await, ["second"], "behind what was handed out two seconds ago");
    assert_eq!(handed_out(Look::Whole).await, ["late"]);
    assert!(handed_out(Look::Wide).await.is_empty());
}
