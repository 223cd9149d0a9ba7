//! `watch add|list|remove`: any table, while it is in use, and gone without a trace.

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::cli::{Said, run, taskbell};
use super::support::daemon::{Daemon, delivery_in};
use super::support::receiver::Receiver;
use super::support::{TestDatabase, eventually};

async fn watch(database: &TestDatabase, arguments: &[&str]) -> Said {
    run(taskbell(Some(database), &[&["watch"], arguments].concat())).await
}

async fn register(client: &Client, id: &str, url: &str) {
    let config = json!({ "url": url, "operation_id": "op" }).to_string();
    let sql = "SELECT taskbell.register_webhook($1, $2::text::jsonb)::text";
    client.query_one(sql, &[&id, &config]).await.unwrap();
}

/// Everything in the database that mentions us outside our own schema.
async fn traces(client: &Client, table: &str) -> Vec<String> {
    let sql = "SELECT tgname::text FROM pg_trigger WHERE tgrelid = $1::text::regclass AND NOT tgisinternal
               UNION ALL SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
               WHERE i.indrelid = $1::text::regclass AND c.relname LIKE 'taskbell%'
               UNION ALL SELECT proname FROM pg_proc WHERE proname ~ '^record_[0-9]+$' AND proname <> 'record_1'";
    client.query(sql, &[&table]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

const CUSTOM: &str = "
    CREATE TYPE phase AS ENUM ('submitted', 'working', 'on hold', 'completed', 'failed');
    CREATE TABLE jobs (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), phase phase NOT NULL DEFAULT 'submitted',
        kind text NOT NULL DEFAULT 'create_media_buy', outcome json, problem jsonb,
        born timestamptz NOT NULL DEFAULT now()
    )";
const ADD_CUSTOM: [&str; 15] = [
    "add",
    "jobs",
    "--profile",
    "custom",
    "--id",
    "id",
    "--state",
    "phase",
    "--type",
    "kind",
    "--result",
    "outcome",
    "--error",
    "problem",
    "--created=born",
];

#[tokio::test]
async fn a_table_of_ones_own_rings_its_buyers_and_is_left_without_a_trace() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let client = database.client().await;
    client.batch_execute(CUSTOM).await.unwrap();
    let added = watch(&database, &ADD_CUSTOM).await;
    assert!(added.code == 0 && added.out.contains("open tasks are indexed"), "{added:?}");
    assert_eq!(watch(&database, &ADD_CUSTOM).await.code, 0, "again is fine");
    assert_eq!(traces(&client, "jobs").await.len(), 3);
    let daemon = Daemon::start(&database, &receiver, |_| {}).await;
    let id: String =
        client.query_one("INSERT INTO jobs DEFAULT VALUES RETURNING id::text", &[]).await.unwrap().get(0);
    register(&client, &id, &receiver.url("/ok")).await;
    // A state that nobody knows is recorded and harms nothing.
    client.batch_execute("UPDATE jobs SET phase = 'on hold'").await.unwrap();
    client.batch_execute("UPDATE jobs SET phase = 'completed', outcome = '{\"n\": 1}'").await.unwrap();
    delivery_in(&client, &id, "delivered").await;
    // The same once more, written otherwise.
    client.batch_execute("UPDATE jobs SET outcome = '{\"n\":1.0}'").await.unwrap();
    assert!(client.batch_execute("UPDATE jobs SET outcome = '{\"n\":2}'").await.is_err());
    let body = receiver.posts().remove(0).json();
    assert_eq!((&body["task_id"], &body["result"]), (&json!(id), &json!({ "n": 1 })));
    let states: Vec<String> = client
        .query("SELECT to_state FROM taskbell.timeline WHERE task_id = $1 ORDER BY transition_id", &[&id])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(states, ["submitted", "on hold", "completed"]);
    daemon.stop().await;
    let removed = watch(&database, &["remove", "jobs"]).await;
    assert_eq!(removed.code, 0, "{removed:?}");
    assert!(traces(&client, "jobs").await.is_empty());
    client.batch_execute("UPDATE jobs SET phase = 'working'").await.unwrap();
    assert!(watch(&database, &["remove", "jobs"]).await.err.contains("is not watched"));
}

#[tokio::test]
async fn the_typescript_sdks_table_is_watched_under_its_own_names() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let client = database.client().await;
    client
        .batch_execute(
            "CREATE TABLE adcp_decisioning_tasks (
                 task_id text PRIMARY KEY, tool text NOT NULL, account_id text NOT NULL,
                 status text NOT NULL DEFAULT 'submitted' CHECK (status IN ('submitted', 'working', 'completed', 'failed')),
                 status_message text, result jsonb, error jsonb, progress jsonb,
                 has_webhook boolean NOT NULL DEFAULT false,
                 created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now())",
        )
        .await
        .unwrap();
    let added = watch(&database, &["add", "adcp_decisioning_tasks", "--profile", "adcp-typescript"]).await;
    assert_eq!(added.code, 0, "{added:?}");
    let daemon = Daemon::start(&database, &receiver, |_| {}).await;
    client
        .batch_execute("INSERT INTO adcp_decisioning_tasks (task_id, tool, account_id) VALUES ('task_t', 'sync_creatives', 'a')")
        .await
        .unwrap();
    register(&client, "task_t", &receiver.url("/ok")).await;
    client
        .batch_execute("UPDATE adcp_decisioning_tasks SET status = 'failed', error = '{\"code\": \"X\"}'")
        .await
        .unwrap();
    delivery_in(&client, "task_t", "delivered").await;
    let body = receiver.posts().remove(0).json();
    assert_eq!((&body["task_type"], &body["protocol"]), (&json!("sync_creatives"), &json!("creative")));
    daemon.stop().await;
}

#[tokio::test]
async fn a_lock_is_waited_for_in_short_tries_that_hold_up_no_writer() {
    let database = TestDatabase::migrated().await;
    let (client, blocker, writer) =
        (database.client().await, database.client().await, database.client().await);
    client.batch_execute(CUSTOM).await.unwrap();
    client.batch_execute("INSERT INTO jobs DEFAULT VALUES").await.unwrap();
    blocker.batch_execute("BEGIN; UPDATE jobs SET kind = kind").await.unwrap();
    let refused = watch(&database, &[&ADD_CUSTOM[..], &["--patience", "300ms"]].concat()).await;
    assert!(refused.code != 0 && refused.err.contains("nothing was changed"), "{refused:?}");
    assert!(traces(&client, "jobs").await.is_empty());
    // While somebody tries, others still write: they wait for one short try at most.
    let adding = watch(&database, &ADD_CUSTOM);
    let writing = async {
        eventually("a writer passes", async || {
            writer.batch_execute("SET statement_timeout = '2s'; INSERT INTO jobs DEFAULT VALUES").await.ok()
        })
        .await;
        blocker.batch_execute("COMMIT").await.unwrap();
    };
    let (added, ()) = tokio::join!(adding, writing);
    assert_eq!(added.code, 0, "{added:?}");
}

#[tokio::test]
async fn list_shows_what_is_missing_and_an_interrupted_index_is_finished() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    client.batch_execute(CUSTOM).await.unwrap();
    client.batch_execute(include_str!("support/sdk_outbox.sql")).await.unwrap();
    assert_eq!(watch(&database, &ADD_CUSTOM).await.code, 0);
    let outbox = ["add", "adcp_task_webhook_outbox", "--profile", "adcp-python-outbox"];
    assert_eq!(watch(&database, &outbox).await.code, 0);
    client
        .batch_execute(
            "DROP TRIGGER taskbell_record ON jobs;
             UPDATE pg_index SET indisvalid = false WHERE indrelid = 'jobs'::regclass AND NOT indisprimary",
        )
        .await
        .unwrap();
    let listed = watch(&database, &["list", "--json"]).await;
    let rows: Vec<Value> = listed.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |table: &str| rows.iter().find(|row| row["table"] == table).unwrap().clone();
    assert_eq!((&of("jobs")["triggers"], &of("jobs")["index"]), (&json!("0 of 1"), &json!("unfinished")));
    assert_eq!(of("decisioning_tasks")["ok"], true);
    assert_eq!(of("adcp_task_webhook_outbox")["triggers"], "1 of 1");
    assert!(listed.err.contains("watch add"), "{listed:?}");
    assert_eq!(watch(&database, &ADD_CUSTOM).await.code, 0);
    let rows = watch(&database, &["list", "--json"]).await.out;
    assert!(rows.lines().all(|line| line.contains("\"ok\":true")), "{rows}");
    assert!(rows.contains("\"index\":\"yes\""));
    let bad = watch(
        &database,
        &["add", "jobs", "--profile", "custom", "--id", "nope", "--state", "phase", "--type", "kind"],
    )
    .await;
    assert!(bad.code != 0 && bad.err.contains("has no column nope"), "{bad:?}");
    assert!(watch(&database, &["add", "nowhere"]).await.err.contains("does not exist"));
}

#[tokio::test]
async fn a_partitioned_table_is_watched_with_all_its_partitions() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let client = database.client().await;
    client
        .batch_execute(
            "CREATE TABLE jobs (id text, day date, phase text DEFAULT 'submitted', kind text DEFAULT 'create_media_buy',
                                outcome jsonb, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
             CREATE TABLE jobs_one PARTITION OF jobs FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
        )
        .await
        .unwrap();
    let add = [
        "add",
        "jobs",
        "--profile",
        "custom",
        "--id",
        "id",
        "--state",
        "phase",
        "--type",
        "kind",
        "--result",
        "outcome",
    ];
    let added = watch(&database, &add).await;
    assert_eq!(added.code, 0, "{added:?}");
    let later = "CREATE TABLE jobs_two PARTITION OF jobs FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')";
    client.batch_execute(later).await.unwrap();
    let daemon = Daemon::start(&database, &receiver, |_| {}).await;
    for (id, day) in [("job_1", "2026-01-15"), ("job_2", "2026-02-15")] {
        let insert = format!("INSERT INTO jobs (id, day) VALUES ('{id}', '{day}')");
        client.batch_execute(&insert).await.unwrap();
        register(&client, id, &receiver.url("/ok")).await;
        client
            .batch_execute(&format!("UPDATE jobs SET phase = 'completed' WHERE id = '{id}'"))
            .await
            .unwrap();
        delivery_in(&client, id, "delivered").await;
    }
    daemon.stop().await;
    assert_eq!(watch(&database, &["remove", "jobs"]).await.code, 0);
    assert!(traces(&client, "jobs").await.is_empty() && traces(&client, "jobs_two").await.is_empty());
}
