//! How our statements are planned: for the tables as they may become, whatever they were at the time.

use std::time::Duration;

use taskbell::outbox::{Look, NativeOptions, NativeOutbox, Outbox, Room, Verdict};
use taskbell::task::UrlSchemes;
use taskbell::webhook::FailureReason;

use super::support::TestDatabase;
use super::support::owed::{claim, fail, owe, settle, succeed};

#[tokio::test]
async fn no_statement_reads_a_whole_table_although_all_were_empty_when_it_was_planned() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    // As after a quiet night: the last page has been given back.
    client.batch_execute(TIDY).await.unwrap();
    reads_along_indexes(&database).await;
    // Many pages, of which nothing counts, and somebody's transaction that keeps them.
    let holder = database.client().await;
    holder
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM taskbell.outbox")
        .await
        .unwrap();
    owe(&client, "gone.example", "acct", 5_000).await;
    client.batch_execute("DELETE FROM taskbell.outbox; DELETE FROM taskbell.registration").await.unwrap();
    client.batch_execute(TIDY).await.unwrap();
    let table = "SELECT relpages, reltuples FROM pg_class WHERE oid = 'taskbell.outbox'::regclass";
    let table = client.query_one(table, &[]).await.unwrap();
    assert!(table.get::<_, i32>(0) > 100 && table.get::<_, f32>(1) == 0.0, "{table:?}");
    reads_along_indexes(&database).await;
}

const TIDY: &str = "VACUUM ANALYZE taskbell.outbox, taskbell.registration";

/// Has everything planned now, by a session that is new.
async fn reads_along_indexes(database: &TestDatabase) {
    let (client, pool) = (database.client().await, database.pool());
    let options = NativeOptions {
        lease: Duration::from_secs(60),
        horizon: Duration::from_secs(86_400),
        patience: Duration::from_secs(5),
        schemes: UrlSchemes::HttpsOnly,
        sealing: std::sync::Arc::default(),
        circuits: taskbell::outbox::CircuitPolicy::default(),
    };
    let outbox = NativeOutbox::new(pool.clone(), options);
    assert!(claim(&outbox, 8).await.is_empty());
    assert_eq!(outbox.next_due().await.unwrap(), None);
    assert_eq!(outbox.expire().await.unwrap(), 0);
    owe(&client, "a.example", "acct", 4).await;
    let bell = "SELECT taskbell.bell_of('https://a.example:443', 'acct')::bigint";
    let bell: i64 = client.query_one(bell, &[]).await.unwrap().get(0);
    let whole = claim(&outbox, 1).await;
    succeed(&outbox, &whole).await;
    let mut room = Room::of(1, 8);
    for look in [Look::Quick, Look::At { places: vec![bell], changes: true }] {
        room.look = look;
        let claims = outbox.claim(&room).await.unwrap().claims;
        assert_eq!(claims.len(), 1);
        fail(&outbox, &claims).await;
    }
    let dead = claim(&outbox, 1).await;
    settle(&outbox, &dead, Verdict::DeadLetter, Some(FailureReason::Timeout)).await;

    let sessions = pool.status().size;
    assert_eq!(sessions, 1, "otherwise some plans are another session's");
    let session = pool.get().await.unwrap();
    let prepared = "SELECT name, cardinality(parameter_types), split_part(statement, E'\\n', 1) FROM pg_prepared_statements
                    WHERE statement LIKE '%taskbell.outbox%'";
    let statements = session.query(prepared, &[]).await.unwrap();
    assert!(statements.len() >= 8, "{}", statements.len());
    for statement in statements {
        let (name, parameters, is): (String, i32, String) =
            (statement.get(0), statement.get(1), statement.get(2));
        let nulls = vec!["NULL"; usize::try_from(parameters).unwrap()].join(", ");
        let arguments = if nulls.is_empty() { nulls } else { format!("({nulls})") };
        let explain = format!("EXPLAIN EXECUTE {name}{arguments}");
        for line in session.query(&explain, &[]).await.unwrap() {
            let line: String = line.get(0);
            let whole = line.contains("Seq Scan") || line.contains("Bitmap");
            let hot = [" on outbox ", " on registration "].iter().any(|table| line.contains(table));
            assert!(!(whole && hot), "{is}: {line}");
        }
    }
}
