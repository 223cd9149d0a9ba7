//! How our statements are planned: for the tables as they may become, whatever they were at the time.

use std::time::Duration;

use taskbell::outbox::{
    LeaseToken, Look, NativeOptions, NativeOutbox, Outbox, Room, RowId, SealedOptions, SealedOutbox,
    Settlement, Verdict,
};
use taskbell::task::{SdkKeys, UrlSchemes};
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

    by_keys(&pool, "taskbell.outbox", &["outbox", "registration"], 8).await;
}

#[tokio::test]
async fn the_triggers_question_goes_by_the_key_although_there_was_nothing() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    // Frees what is dead, and then what pages it may at the end.
    for _ in 0..3 {
        client.batch_execute("VACUUM ANALYZE taskbell.registration").await.unwrap();
    }
    let explain = "EXPLAIN SELECT lane FROM taskbell.registration WHERE watch_id = 1 AND task_id = 'task_1'";
    let plan: String = client.query(explain, &[]).await.unwrap()[0].get(0);
    assert!(plan.contains("Index Scan using registration_pkey"), "{plan}");
}

#[tokio::test]
async fn nor_do_those_for_the_sdks_outbox() {
    let database = TestDatabase::migrated().await;
    let (client, pool) = (database.client().await, database.pool());
    client.batch_execute(include_str!("support/sdk_outbox.sql")).await.unwrap();
    client.batch_execute("VACUUM ANALYZE adcp_task_webhook_outbox").await.unwrap();
    let outbox = SealedOutbox::new(
        pool.clone(),
        SealedOptions {
            table: "adcp_task_webhook_outbox".to_owned(),
            lease: Duration::from_secs(60),
            patience: Duration::from_secs(5),
            schemes: UrlSchemes::HttpsOnly,
            keys: std::sync::Arc::new(SdkKeys::parse([[7; 32].as_slice()]).unwrap()),
        },
    );
    assert!(outbox.claim(&Room::of(8, 8)).await.unwrap().claims.is_empty());
    let settlement = Settlement {
        row: RowId::sealed(1),
        lease: LeaseToken(uuid::Uuid::new_v4()),
        verdict: Verdict::Acknowledge,
        reason: None,
        attempt: None,
    };
    assert_eq!(outbox.settle(&[settlement]).await.unwrap().lost, [RowId::sealed(1)]);
    by_keys(&pool, "adcp_task_webhook_outbox", &["adcp_task_webhook_outbox"], 3).await;
}

/// Each of a session's statements finds the rows of these tables by their keys, but for those that go along an index as
/// far as they need.
async fn by_keys(pool: &deadpool_postgres::Pool, about: &str, tables: &[&str], at_least: usize) {
    let sessions = pool.status().size;
    assert_eq!(sessions, 1, "otherwise some plans are another session's");
    let session = pool.get().await.unwrap();
    let prepared = "SELECT name, cardinality(parameter_types), split_part(statement, E'\\n', 1) FROM pg_prepared_statements
                    WHERE position($1 IN statement) > 0 AND statement NOT LIKE 'SELECT name%'";
    let statements = session.query(prepared, &[&about]).await.unwrap();
    assert!(statements.len() >= at_least, "{}", statements.len());
    for mode in ["force_custom_plan", "force_generic_plan"] {
        session.batch_execute(&format!("SET plan_cache_mode = {mode}")).await.unwrap();
        for statement in &statements {
            let (name, parameters, is): (String, i32, String) =
                (statement.get(0), statement.get(1), statement.get(2));
            let nulls = vec!["NULL"; usize::try_from(parameters).unwrap()].join(", ");
            let arguments = if nulls.is_empty() { nulls } else { format!("({nulls})") };
            let explain = format!("EXPLAIN EXECUTE {name}{arguments}");
            let rows = session.query(&explain, &[]).await.unwrap();
            let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            for (n, line) in lines.iter().enumerate() {
                let hot = line.contains("Scan")
                    && tables.iter().any(|table| line.contains(&format!(" on {table} ")));
                let found = lines.get(n + 1).is_some_and(|next| next.contains("Cond:"));
                let along = ALONG.iter().any(|(start, index)| is.starts_with(start) && line.contains(index));
                let whole = line.contains("Seq Scan") || line.contains("Bitmap");
                assert!(!hot || (!whole && (found || along)), "{mode}, {is}\n{}", lines.join("\n"));
                assert!(!line.contains("Semi Join"), "{mode}, {is}\n{}", lines.join("\n"));
            }
        }
    }
}

/// By their first words: what goes along an index from its beginning, and which.
const ALONG: [(&str, &str); 3] = [
    ("-- Seconds until the next row may", "using outbox_lane"),
    ("-- Takes due rows of the SDK's outbox", "_work_idx"),
    ("-- The SDK expires before every claim", "_work_idx"),
];
