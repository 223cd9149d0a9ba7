//! The database half: who may change what, and what is recorded.

use taskbell::migrations;

use super::support::{COMPLETE, TestDatabase, complete, issue};

async fn count(client: &tokio_postgres::Client, sql: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {sql}"), &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn many_migrators_at_once_agree_and_the_printed_sql_is_the_same() {
    let database = TestDatabase::empty().await;
    let runs = (0..6).map(|_| async { migrations::apply(&mut database.client().await).await.unwrap().len() });
    let applied: usize = futures_util::future::join_all(runs).await.into_iter().sum();
    assert_eq!(applied, migrations::MIGRATIONS.len());
    let by_hand = TestDatabase::empty().await;
    by_hand.client().await.batch_execute(&migrations::print()).await.unwrap();
    assert!(migrations::apply(&mut by_hand.client().await).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let database = TestDatabase::migrated().await;
    let mut client = database.client().await;
    client
        .execute("INSERT INTO taskbell.schema_version (version, name) VALUES (999, 'later')", &[])
        .await
        .unwrap();
    let refused = migrations::apply(&mut client).await;
    assert!(matches!(refused, Err(migrations::MigrationError::Newer { version: 999 })));
}

#[tokio::test]
async fn terminal_states_cannot_be_left_whoever_writes() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    issue(&client, "task_a", None).await;
    complete(&client, "task_a").await;
    for change in ["state = 'working'", "state = 'failed'", "result = '{}'", "error = '{}'"] {
        let refused =
            client.batch_execute(&format!("UPDATE decisioning_tasks SET {change}")).await.unwrap_err();
        assert_eq!(
            refused.as_db_error().unwrap().constraint(),
            Some("taskbell_terminal_is_final"),
            "{change}"
        );
    }
    client
        .batch_execute("UPDATE decisioning_tasks SET updated_at = 5, webhook_registration = NULL")
        .await
        .unwrap();
}

#[tokio::test]
async fn only_a_committed_end_of_a_registered_task_is_owed() {
    let database = TestDatabase::migrated().await;
    let mut client = database.client().await;
    issue(&client, "task_plain", None).await;
    complete(&client, "task_plain").await;
    let ended_at_once = "INSERT INTO decisioning_tasks (task_id, account_id, state, task_type, created_at, updated_at) \
                         VALUES ('task_at_once', 'acct', 'completed', 'create_media_buy', 'NaN', 0)";
    client.batch_execute(ended_at_once).await.unwrap();
    issue(&client, "task_back", Some("https://buyer.example/")).await;
    let transaction = client.transaction().await.unwrap();
    transaction.execute(COMPLETE, &[&"task_back"]).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(count(&client, "taskbell.outbox WHERE lane IS NOT NULL").await, 0);
    complete(&client, "task_back").await;
    assert_eq!(count(&client, "taskbell.outbox WHERE lane = 'https://buyer.example:443'").await, 1);
    assert_eq!(count(&client, "taskbell.outbox WHERE lane IS NULL").await, 4);
}

#[tokio::test]
async fn a_sellers_role_needs_no_grants_on_our_schema() {
    let database = TestDatabase::migrated().await;
    let admin = database.client().await;
    let role = format!("seller_{}", std::process::id());
    admin
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE ON decisioning_tasks TO {role};"
        ))
        .await
        .unwrap();
    let dsn = database.dsn.replace("user=postgres", &format!("user={role}"));
    let (seller, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    issue(&seller, "task_a", Some("https://buyer.example/")).await;
    complete(&seller, "task_a").await;
    for forbidden in [
        "SELECT * FROM taskbell.registration",
        "SELECT * FROM taskbell.outbox",
        "SELECT taskbell.ring()",
        "SELECT taskbell.cancel_delivery(1)",
        "DELETE FROM taskbell.transition",
    ] {
        let refused = seller.batch_execute(forbidden).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{forbidden}");
    }
    assert_eq!(count(&admin, "taskbell.outbox WHERE lane IS NOT NULL").await, 1);
    issue(&admin, "task_b", None).await;
    admin.batch_execute(&format!("REVOKE INSERT ON decisioning_tasks FROM {role}")).await.unwrap();
    let register = "SELECT taskbell.register_webhook('task_b', '{\"url\":\"https://b.example/\",\"operation_id\":\"o\"}')";
    assert_eq!(seller.batch_execute(register).await.unwrap_err().code().unwrap().code(), "42501");
    admin.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test]
async fn a_sellers_search_path_means_nothing_to_the_trigger() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    issue(&client, "task_a", Some("https://buyer.example/hook")).await;
    let seller = database.client().await;
    seller.batch_execute(TRAPS).await.unwrap();
    seller.batch_execute("SET search_path = traps, pg_temp, pg_catalog, public").await.unwrap();
    for trap in ["'a'::pg_catalog.text = 'b'", "'a'::text", "pg_catalog.int2 '1' = 1", "gen_random_uuid()"] {
        let error = seller.batch_execute(&format!("SELECT {trap}")).await.unwrap_err();
        let said = error.as_db_error().unwrap().message().to_owned();
        assert!(said.contains("trapped") || said.contains("check constraint"), "{trap}: {said}");
    }
    let end = "UPDATE public.decisioning_tasks SET state = 'completed', result = '{\"n\": 1}'";
    seller.batch_execute(end).await.unwrap();
    let issue =
        "INSERT INTO public.decisioning_tasks (task_id, account_id, task_type, created_at, updated_at)
                 VALUES ('task_b', 'acct', 'create_media_buy', 1700000000, 0)";
    seller.batch_execute(issue).await.unwrap();
    let sql = "taskbell.outbox WHERE task_id = 'task_a' AND lane = 'https://buyer.example:443'
               AND document = '{\"n\": 1}' AND idempotency_key IS NOT NULL AND task_created_at IS NOT NULL";
    assert_eq!(count(&client, sql).await, 1);
    assert_eq!(count(&client, "taskbell.outbox WHERE task_id = 'task_b'").await, 1);
    let again =
        seller.batch_execute("UPDATE public.decisioning_tasks SET state = 'failed'").await.unwrap_err();
    assert_eq!(again.as_db_error().unwrap().constraint(), Some("taskbell_terminal_is_final"));
}

/// Names that the trigger could fall for.
const TRAPS: &str = include_str!("traps.sql");

#[tokio::test]
async fn an_sdk_table_that_exists_already_is_only_given_triggers() {
    let database = TestDatabase::empty().await;
    let client = database.client().await;
    // As an early version of the AdCP Python SDK made it.
    client
        .batch_execute(
            "CREATE TABLE decisioning_tasks (task_id text COLLATE \"C\" PRIMARY KEY, account_id text COLLATE \"C\" NOT NULL, \
             state text NOT NULL DEFAULT 'submitted', task_type text NOT NULL, progress jsonb, result jsonb, error jsonb, \
             created_at double precision NOT NULL, updated_at double precision NOT NULL)",
        )
        .await
        .unwrap();
    migrations::apply(&mut database.client().await).await.unwrap();
    issue(&client, "task_a", Some("https://buyer.example/")).await;
    complete(&client, "task_a").await;
    assert_eq!(count(&client, "taskbell.outbox WHERE document = '{\"n\": 1.50}'").await, 1);
    let columns =
        count(&client, "pg_attribute WHERE attrelid = 'decisioning_tasks'::regclass AND attnum > 0").await;
    assert_eq!(columns, 9);
    client.query_one("SELECT taskbell.unwatch('decisioning_tasks')", &[]).await.unwrap();
    assert_eq!(count(&client, "pg_trigger WHERE tgname LIKE 'taskbell%'").await, 0);
}

#[tokio::test]
async fn a_url_is_shown_without_query_fragment_and_tokens() {
    let client = TestDatabase::migrated().await.client().await;
    let token = "9f8e7d6c5b4a39281706abcd";
    for (url, shown) in [
        ("https://b.example".to_owned(), "https://b.example"),
        ("https://b.example/?a=/b#c".to_owned(), "https://b.example/"),
        ("https://b.example:8443?a=b".to_owned(), "https://b.example:8443"),
        (format!("https://b.example/hook/{token}"), "https://b.example/hook/[redacted]"),
        (format!("https://b.example/{token}/{token}/end?x#y"), "https://b.example/[redacted]/[redacted]/end"),
        (format!("https://b.example//{token}/"), "https://b.example//[redacted]/"),
        ("https://b.example/hook/[redacted]".to_owned(), "https://b.example/hook/[redacted]"),
        // A host, words, numbers, and what is short are no tokens.
        (format!("https://{token}.example/x"), "https://9f8e7d6c5b4a39281706abcd.example/x"),
        (
            "https://b.example/create_media_buy_notifications".to_owned(),
            "https://b.example/create_media_buy_notifications",
        ),
        ("https://b.example/12345678901234567890/a1".to_owned(), "https://b.example/12345678901234567890/a1"),
        ("no URL".to_owned(), "no URL"),
    ] {
        let row = client.query_one("SELECT taskbell.shown_url($1)", &[&url]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), shown, "{url}");
    }
}

#[tokio::test]
async fn days_are_created_ahead_and_dropped_when_they_are_old() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    client
        .batch_execute(
            "CREATE TABLE taskbell.attempt_20200101 PARTITION OF taskbell.attempt \
             FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00')",
        )
        .await
        .unwrap();
    let dropped: i32 =
        client.query_one("SELECT taskbell.drop_partitions('30 days')", &[]).await.unwrap().get(0);
    assert_eq!(dropped, 1);
    let made: i32 = client.query_one("SELECT taskbell.create_partitions(9)", &[]).await.unwrap().get(0);
    assert_eq!(made, 4);
}
