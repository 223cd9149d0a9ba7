//! Secrets at rest: sealed by whoever holds a key, opened for one delivery, moved to a new key.

use std::sync::Arc;

use secrecy::ExposeSecret;
use serde_json::{Value, json};
use taskbell::outbox::native::{Resealed, Which, seal_registrations};
use taskbell::registry::{NewTask, PostgresTaskRegistry, Scope, TaskRegistry};
use taskbell::task::{AccountId, Registration, SealingKey, SealingKeys, TaskId, TaskType, UrlSchemes};
use taskbell::webhook::LegacyModes;
use tokio_postgres::Client;

use super::support::daemon::{Daemon, delivery_in};
use super::support::receiver::Receiver;
use super::support::{INSERT, TestDatabase, complete, eventually};

const TOKEN: &str = "token-0123456789-abcdef";
const CREDENTIALS: &str = "credentials-0123456789-abcdef-0123";

fn key(kid: &str) -> secrecy::SecretString {
    SealingKey::generate(Some(kid)).unwrap()
}

fn keys(files: &[&secrecy::SecretString]) -> SealingKeys {
    let parsed = files.iter().map(|file| SealingKey::parse(file.expose_secret()).unwrap());
    SealingKeys::new(parsed.collect()).unwrap()
}

fn config(url: &str) -> Value {
    json!({
        "url": url, "operation_id": "op", "token": TOKEN,
        "authentication": { "schemes": ["HMAC-SHA256"], "credentials": CREDENTIALS },
    })
}

async fn issue_plain(client: &Client, id: &str, url: &str) {
    client.execute(INSERT, &[&id]).await.unwrap();
    let sql = "SELECT taskbell.register_webhook($1, $2::text::jsonb)::text";
    client.query_one(sql, &[&id, &config(url).to_string()]).await.unwrap();
}

async fn issue_sealed(database: &TestDatabase, keys: SealingKeys, url: &str) -> TaskId {
    let registry = PostgresTaskRegistry::new(database.pool()).with_sealing(keys);
    let task = NewTask {
        account: AccountId::parse("acct").unwrap(),
        task_type: TaskType::parse("create_media_buy").unwrap(),
        request_context: None,
        registration: Some(Registration::parse(&config(url), UrlSchemes::HttpsOnly).unwrap()),
    };
    registry.issue(task).await.unwrap()
}

/// Everything that a backup of the schema would have.
async fn dump(client: &Client) -> String {
    let mut text = String::new();
    for table in ["registration", "outbox", "transition", "attempt"] {
        let sql = format!("SELECT coalesce(string_agg(t::text, ' '), '') FROM taskbell.{table} t");
        text += &client.query_one(&sql, &[]).await.unwrap().get::<_, String>(0);
    }
    text
}

async fn sealed_with(client: &Client) -> Vec<Option<String>> {
    let sql = "SELECT sealed_with FROM taskbell.registration ORDER BY task_id";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn a_registry_with_a_key_never_lets_the_database_see_a_secret() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let (client, file) = (database.client().await, key("k1"));
    let id = issue_sealed(&database, keys(&[&file]), &receiver.url("/ok")).await;
    let stored = dump(&client).await;
    assert!(!stored.contains(TOKEN) && !stored.contains(CREDENTIALS) && stored.contains("k1"));
    let daemon = Daemon::start(&database, &receiver, |tuning| {
        tuning.sealing = Arc::new(keys(&[&file]));
        tuning.legacy = LegacyModes { bearer: false, hmac: true };
    })
    .await;
    let registry = PostgresTaskRegistry::new(database.pool());
    registry.complete(&id, Scope::Operator, json!({ "n": 1 })).await.unwrap();
    delivery_in(&client, id.as_str(), "delivered").await;
    let post = receiver.posts().remove(0);
    assert_eq!(post.json()["token"], TOKEN);
    // The key of the HMAC is the secret's text.
    let timestamp = post.headers["x-adcp-timestamp"].to_str().unwrap();
    let signed = [timestamp.as_bytes(), b".", &post.body].concat();
    let hmac = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, CREDENTIALS.as_bytes());
    let expected = aws_lc_rs::hmac::sign(&hmac, &signed);
    let hex = expected.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(post.headers["x-adcp-signature"], format!("sha256={hex}"));
    assert!(!dump(&client).await.contains(TOKEN));
    daemon.stop().await;
}

#[tokio::test]
async fn what_sql_writers_left_plain_is_sealed_and_moves_to_a_new_key() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let (client, pool) = (database.client().await, database.pool());
    let (old, new) = (key("old"), key("new"));
    for n in 0..450 {
        issue_plain(&client, &format!("task_{n:03}"), &receiver.url("/ok")).await;
    }
    assert!(dump(&client).await.contains(CREDENTIALS));
    let seal = async |keys, which| seal_registrations(&pool, &keys, which).await.unwrap();
    assert_eq!(seal(SealingKeys::default(), Which::Plain).await, Resealed::default());
    assert_eq!(seal(keys(&[&old]), Which::Plain).await, Resealed { rows: 450, unopenable: 0 });
    assert!(!dump(&client).await.contains(CREDENTIALS));
    assert_eq!(seal(keys(&[&new, &old]), Which::Plain).await.rows, 0);
    // A row that was altered stays as it is, and holds up none of the others.
    client
        .batch_execute(
            "UPDATE taskbell.registration SET url = 'https://evil.example/' WHERE task_id = 'task_003'",
        )
        .await
        .unwrap();
    let both = async || seal(keys(&[&new, &old]), Which::PlainAndOldKeys).await;
    assert_eq!(both().await, Resealed { rows: 449, unopenable: 1 });
    assert_eq!(both().await, Resealed { rows: 0, unopenable: 1 });
    let with = sealed_with(&client).await;
    assert_eq!(with.iter().filter(|key| key.as_deref() == Some("old")).count(), 1);
    let daemon = Daemon::start(&database, &receiver, |tuning| {
        tuning.sealing = Arc::new(keys(&[&new, &old]));
        tuning.legacy = LegacyModes { bearer: false, hmac: true };
    })
    .await;
    complete(&client, "task_003").await;
    complete(&client, "task_004").await;
    let dead = delivery_in(&client, "task_003", "invalid").await;
    assert_eq!(dead["last_reason"], "unopenable");
    delivery_in(&client, "task_004", "delivered").await;
    assert_eq!(receiver.posts().len(), 1);
    daemon.stop().await;
}

#[tokio::test]
async fn the_daemon_seals_what_it_finds_counts_legacy_use_and_tells_no_secret() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let directory = tempfile::tempdir().unwrap();
    let paths = ["old", "new"].map(|kid| {
        let path = directory.path().join(kid);
        std::fs::write(&path, key(kid).expose_secret()).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let ca_file = receiver.ca_file.path().to_str().unwrap();
    let environment = [
        ("TASKBELL_SEALING__KEY_FILES", paths[0].as_str()),
        ("TASKBELL_HTTP__CA_FILE", ca_file),
        ("TASKBELL_GUARD__ALLOW_PRIVATE", "true"),
        ("TASKBELL_LOG__FILTER", "trace"),
    ];
    let daemon = super::daemon::Running::start(&database, &environment).await;
    let client = database.client().await;
    for id in ["task_a", "task_b"] {
        issue_plain(&client, id, &receiver.url(&format!("/ok/{id}?secret={CREDENTIALS}"))).await;
    }
    eventually("both are sealed", async || {
        sealed_with(&client).await.iter().all(|key| key.as_deref() == Some("old")).then_some(())
    })
    .await;
    complete(&client, "task_a").await;
    delivery_in(&client, "task_a", "delivered").await;
    let metrics = daemon.get("/metrics").await.1;
    assert!(metrics.contains("taskbell_legacy_attempts_total{scheme=\"HMAC-SHA256\"} 1"), "{metrics}");
    // Moved to the new key while the daemon runs; then the old one is no longer needed.
    let mut reseal = super::cli::taskbell(Some(&database), &["keys", "reseal"]);
    reseal.env("TASKBELL_SEALING__KEY_FILES", format!("{},{}", paths[1], paths[0]));
    let said = super::cli::run(reseal).await;
    assert_eq!((said.code, said.out.as_str()), (0, "1 registrations sealed with `new`\n"), "{said:?}");
    assert_eq!(sealed_with(&client).await, [Some("new".to_owned())]);
    let log = daemon.log();
    assert!(log.contains("attempt ended") && log.contains("legacy_authentication"), "{log}");
    for secret in [TOKEN, CREDENTIALS] {
        assert!(!log.contains(secret) && !metrics.contains(secret));
    }
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn a_scheme_that_is_switched_off_is_refused_at_the_door() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    client.batch_execute("SET taskbell.legacy_schemes = 'Bearer'").await.unwrap();
    client.execute(INSERT, &[&"task_a"]).await.unwrap();
    let register = async |config: Value| {
        let sql = "SELECT taskbell.register_webhook('task_a', $1::text::jsonb)::text";
        client.query_one(sql, &[&config.to_string()]).await.map(drop)
    };
    let refused = register(config("https://buyer.example/")).await.unwrap_err();
    assert_eq!(refused.as_db_error().unwrap().column(), Some("authentication.schemes"));
    let mut bearer = config("https://buyer.example/");
    bearer["authentication"]["schemes"] = json!(["Bearer"]);
    register(bearer).await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_missing_here_is_our_own_fault_and_costs_nothing() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let (client, file) = (database.client().await, key("elsewhere"));
    let id = issue_sealed(&database, keys(&[&file]), &receiver.url("/ok")).await;
    let daemon = Daemon::start(&database, &receiver, |_| {}).await;
    complete(&client, id.as_str()).await;
    let waiting = eventually("the reason", async || {
        let found = super::support::daemon::delivery(&client, id.as_str()).await;
        (found["last_reason"] == "no_sealing_key" && found["state"] == "pending").then_some(found)
    })
    .await;
    assert_eq!((waiting["attempt_count"].as_i64(), &waiting["first_attempt_at"]), (Some(0), &Value::Null));
    daemon.stop().await;
}
