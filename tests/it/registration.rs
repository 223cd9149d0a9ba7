//! One table of registrations for both who judge them: Rust and SQL.

use serde_json::{Value, json};
use taskbell::task::{Registration, UrlSchemes};

use super::support::{TestDatabase, complete, issue};

/// A config, and the member at fault if it must be refused.
fn cases() -> Vec<(Value, Option<&'static str>)> {
    let url = "https://buyer.example/hook";
    let secret = "0123456789abcdef".repeat(2);
    let with = |extra: Value| {
        let mut config = json!({ "url": url, "operation_id": "op_1" });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        config
    };
    let at = |url: &str| with(json!({ "url": url }));
    let auth = |authentication: Value| with(json!({ "authentication": authentication }));
    vec![
        (with(json!({})), None),
        (with(json!({ "token": "t".repeat(16), "authentication": null, "extra": 1 })), None),
        (auth(json!({ "schemes": ["Bearer"], "credentials": secret })), None),
        (auth(json!({ "schemes": ["HMAC-SHA256"], "credentials": secret })), None),
        (at("HTTPS://Buyer.Example.:8443/a?b=c#d"), None),
        (at("https://[2606:4700::1111]/"), None),
        (at("https://bücher.example/ü"), None),
        (json!("text"), Some("push_notification_config")),
        (json!({ "operation_id": "op_1" }), Some("url")),
        (with(json!({ "url": 7 })), Some("url")),
        (at("http://buyer.example/"), Some("url")),
        (at("ftp://buyer.example/"), Some("url")),
        (at("/hook"), Some("url")),
        (at(""), Some("url")),
        (at("https://"), Some("url")),
        (at("https:///hook"), Some("url")),
        (at("https://:443/"), Some("url")),
        (at("https://user@buyer.example/"), Some("url")),
        (at("https://user:secret@buyer.example/"), Some("url")),
        (at("https://buyer.example:99999/"), Some("url")),
        (at("https://buyer.example:port/"), Some("url")),
        (at("https://buyer..example/"), Some("url")),
        (at("https://buyer.example../"), Some("url")),
        (at("https://.buyer.example/"), Some("url")),
        (at("https://./"), Some("url")),
        (at("https://[fe80::1%25eth0]/"), Some("url")),
        (at("https://[::1/"), Some("url")),
        (at("https://buyer.example/a b"), Some("url")),
        (at("https://buyer.example/\u{7}"), Some("url")),
        (at("https://buyer.example\\@evil.example/"), Some("url")),
        (at(&format!("https://buyer.example/{}", "a".repeat(2048))), Some("url")),
        (json!({ "url": url }), Some("operation_id")),
        (with(json!({ "operation_id": "" })), Some("operation_id")),
        (with(json!({ "operation_id": 7 })), Some("operation_id")),
        (with(json!({ "operation_id": "a b" })), Some("operation_id")),
        (with(json!({ "operation_id": "é" })), Some("operation_id")),
        (with(json!({ "operation_id": "o".repeat(256) })), Some("operation_id")),
        (with(json!({ "token": "short" })), Some("token")),
        (with(json!({ "token": "t".repeat(4097) })), Some("token")),
        (with(json!({ "token": 7 })), Some("token")),
        (auth(json!("Bearer")), Some("authentication")),
        (auth(json!({ "schemes": ["Bearer"], "credentials": secret, "kid": "x" })), Some("authentication")),
        (auth(json!({ "schemes": ["Bearer"], "credentials": "short" })), Some("authentication.credentials")),
        (auth(json!({ "schemes": ["Bearer"] })), Some("authentication.credentials")),
        (
            auth(json!({ "schemes": ["Bearer"], "credentials": format!("{secret}\r\nx: y") })),
            Some("authentication.credentials"),
        ),
        (
            auth(json!({ "schemes": ["HMAC-SHA256"], "credentials": format!("{secret}\u{7f}") })),
            Some("authentication.credentials"),
        ),
        (auth(json!({ "schemes": ["Bearer"], "credentials": "a".repeat(32) })), None),
        (
            auth(json!({ "schemes": ["HMAC-SHA256"], "credentials": "a".repeat(32) })),
            Some("authentication.credentials"),
        ),
        (auth(json!({ "schemes": [], "credentials": secret })), Some("authentication.schemes")),
        (
            auth(json!({ "schemes": ["Bearer", "HMAC-SHA256"], "credentials": secret })),
            Some("authentication.schemes"),
        ),
        (auth(json!({ "schemes": ["Basic"], "credentials": secret })), Some("authentication.schemes")),
        (auth(json!({ "schemes": "Bearer", "credentials": secret })), Some("authentication.schemes")),
    ]
}

#[tokio::test]
async fn rust_and_sql_refuse_the_same_and_name_the_same_member() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    for (n, (config, fault)) in cases().into_iter().enumerate() {
        let rust = Registration::parse(&config, UrlSchemes::HttpsOnly);
        assert_eq!(rust.as_ref().err().map(|error| error.field), fault, "{config}");
        let id = format!("task_{n}");
        issue(&client, &id, None).await;
        let sql = client
            .query_one(
                "SELECT taskbell.register_webhook($1, $2::text::jsonb)::text",
                &[&id, &config.to_string()],
            )
            .await;
        let named = sql
            .as_ref()
            .err()
            .map(|error| error.as_db_error().unwrap().column().unwrap_or_default().to_owned());
        assert_eq!(named.as_deref(), fault, "{config}");
        let kept: i64 = client
            .query_one("SELECT count(*) FROM taskbell.registration WHERE task_id = $1", &[&id])
            .await
            .unwrap()
            .get(0);
        assert_eq!(kept, i64::from(fault.is_none()), "{config}");
        if let (Err(rust), Err(sql)) = (rust, sql) {
            assert_eq!(rust.to_string(), sql.as_db_error().unwrap().message());
        }
    }
}

#[tokio::test]
async fn registering_too_late_is_an_error_that_says_so() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    issue(&client, "task_a", None).await;
    complete(&client, "task_a").await;
    let register = async |id: &str| {
        let sql = "SELECT taskbell.register_webhook($1, '{\"url\":\"https://b.example/\",\"operation_id\":\"o\"}')::text";
        client.query_one(sql, &[&id]).await.unwrap_err().as_db_error().unwrap().message().to_owned()
    };
    assert!(register("task_a").await.contains("already completed"));
    assert!(register("task_none").await.contains("no such task"));
    client.batch_execute("INSERT INTO decisioning_tasks VALUES ('task_odd', 'a', 'submitted', 'odd', null, null, null, null, null, null, 0, 0)").await.unwrap();
    assert!(register("task_odd").await.contains("cannot have a webhook"));
}

#[tokio::test]
async fn a_registration_is_fixed_but_may_be_repeated() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    issue(&client, "task_a", Some("https://b.example/1")).await;
    let register = "SELECT taskbell.register_webhook('task_a', $1::text::jsonb)::text";
    let same = "{\"url\":\"https://b.example/1\",\"operation_id\":\"op_task_a\"}";
    client.query_one(register, &[&same]).await.unwrap();
    let other = "{\"url\":\"https://b.example/2\",\"operation_id\":\"op_task_a\"}";
    let refused = client.query_one(register, &[&other]).await.unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("already has another registration"));
}

#[tokio::test]
async fn whoever_ends_the_task_while_it_is_registered_waits_and_rings() {
    let database = TestDatabase::migrated().await;
    let (mut registrar, seller) = (database.client().await, database.client().await);
    issue(&registrar, "task_a", None).await;
    let transaction = registrar.transaction().await.unwrap();
    let register = "SELECT taskbell.register_webhook('task_a', '{\"url\":\"https://b.example/\",\"operation_id\":\"o\"}')::text";
    transaction.query_one(register, &[]).await.unwrap();
    let ending = tokio::spawn(async move { complete(&seller, "task_a").await });
    super::support::eventually("the seller waits", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        (transaction.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
    })
    .await;
    transaction.commit().await.unwrap();
    ending.await.unwrap();
    let owed = registrar
        .query_one("SELECT count(*) FROM taskbell.outbox WHERE lane IS NOT NULL", &[])
        .await
        .unwrap();
    assert_eq!(owed.get::<_, i64>(0), 1);
}

/// A statement cannot parse names as the HTTP client will. What it lets through of the hostile
/// URLs, the guard and the canonicalization refuse before anything is sent.
#[tokio::test]
async fn of_the_hostile_urls_sql_refuses_all_but_a_few_and_no_benign_one() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    let vectors: Value = serde_json::from_str(include_str!("../vectors/hostile-urls.json")).unwrap();
    let mut let_through = Vec::new();
    for (n, case) in vectors["urls"].as_array().unwrap().iter().enumerate() {
        let url = case["url"].as_str().unwrap();
        if url.contains('\0') {
            continue; // jsonb refuses it by itself
        }
        let config = json!({ "url": url, "operation_id": "op_1" });
        let id = format!("task_{n}");
        issue(&client, &id, None).await;
        let sql = "SELECT taskbell.register_webhook($1, $2::text::jsonb)::text";
        let refused = client.query_one(sql, &[&id, &config.to_string()]).await.is_err();
        let rust = Registration::parse(&config, UrlSchemes::HttpsOnly).is_err();
        let hostile = !case["refused_at"].is_null();
        assert!(rust || !refused || hostile, "SQL alone refuses {url}");
        if rust && !refused {
            let_through.push(url.to_owned());
        }
    }
    let ascii: Vec<&String> = let_through.iter().filter(|url| url.is_ascii()).collect();
    assert!(let_through.len() <= 40 && ascii.len() <= 12, "{let_through:#?}");
}
