//! The AdCP Python SDK's outbox: its rows delivered byte for byte, its rules kept to the letter.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde_json::{Value, json};
use taskbell::outbox::{Outbox, Outboxes, Room, SealedOptions, SealedOutbox, Settlement, Verdict};
use taskbell::task::{SdkKeys, SigningScope, UrlSchemes};
use taskbell::webhook::{FailureReason, KeySets, LegacyModes, Outcome, Unsendable};
use tokio_postgres::Client;

use super::support::daemon::{self, Daemon, ring};
use super::support::receiver::Receiver;
use super::support::{TestDatabase, complete, eventually, issue};

pub const KEY: [u8; 32] = [7; 32];

/// A row as the SDK would have written it.
pub struct Row {
    task_id: String,
    url: String,
    scope: Option<&'static str>,
    authentication: Option<(&'static str, &'static str)>,
    /// Spaced and escaped, as Python's encoder writes it.
    body: String,
}

impl Row {
    pub fn new(task_id: &str, url: &str) -> Self {
        let body = format!(
            "{{\"idempotency_key\": \"{}\", \"notification_id\": \"{task_id}.terminal\", \"operation_id\": \"op_1\", \
             \"task_id\": \"{task_id}\", \"task_type\": \"create_media_buy\", \"protocol\": \"media-buy\", \
             \"status\": \"completed\", \"timestamp\": \"2026-04-18T14:00:00Z\", \"result\": {{\"n\": 1.0, \"u\": \"\\u00fc\"}}}}",
            key_of(task_id)
        );
        Self { task_id: task_id.to_owned(), url: url.to_owned(), scope: None, authentication: None, body }
    }

    pub async fn insert(&self, client: &Client) -> i64 {
        let mut aad = vec!["acct", &self.task_id, "create_media_buy", "completed", &self.url, "op_1"];
        let key = key_of(&self.task_id);
        aad.push(&key);
        aad.extend(self.scope);
        let plain = match self.authentication {
            None => self.body.clone(),
            Some((scheme, credentials)) => {
                use base64::Engine;
                let body = base64::engine::general_purpose::STANDARD.encode(&self.body);
                json!({ "task_webhook_delivery_version": 1, "body": body,
                        "authentication": { "scheme": scheme, "credentials": credentials } })
                .to_string()
            }
        };
        let mut text = plain.into_bytes();
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).unwrap());
        let mut nonce = [0; 12];
        aws_lc_rs::rand::fill(&mut nonce).unwrap();
        let aad = json!(aad).to_string();
        cipher.seal_in_place_append_tag(Nonce::from(&nonce), Aad::from(aad), &mut text).unwrap();
        let sql = "INSERT INTO adcp_task_webhook_outbox (task_id, task_type, terminal_status, url, operation_id, idempotency_key,
                   signing_scope_id, account_id, encrypted_body, envelope_nonce, retry_horizon_seconds)
                   VALUES ($1, 'create_media_buy', 'completed', $2, 'op_1', $3, $4, 'acct', $5, $6, 86400) RETURNING id";
        let row = client
            .query_one(sql, &[&self.task_id, &self.url, &key, &self.scope, &text, &nonce.as_slice()])
            .await
            .unwrap();
        row.get(0)
    }
}

fn key_of(task_id: &str) -> String {
    format!("whk_{task_id}_0123456789abcdef")
}

async fn database() -> (TestDatabase, Client) {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    client.batch_execute(include_str!("support/sdk_outbox.sql")).await.unwrap();
    (database, client)
}

fn sealed(database: &TestDatabase) -> SealedOutbox {
    sealed_with(database, &[&KEY])
}

fn sealed_with(database: &TestDatabase, keys: &[&[u8]]) -> SealedOutbox {
    let options = SealedOptions {
        table: "adcp_task_webhook_outbox".to_owned(),
        lease: Duration::from_secs(60),
        patience: Duration::from_secs(30),
        schemes: UrlSchemes::HttpsOnly,
        keys: Arc::new(SdkKeys::parse(keys.iter().copied()).unwrap()),
    };
    SealedOutbox::new(database.pool(), options)
}

fn room() -> Room {
    Room::of(10, 10)
}

async fn state(client: &Client, id: i64) -> Value {
    let sql = "SELECT to_jsonb(o) - 'encrypted_body' FROM adcp_task_webhook_outbox o WHERE id = $1";
    client.query_one(sql, &[&id]).await.unwrap().get(0)
}

async fn state_in(client: &Client, id: i64, wanted: &str) -> Value {
    eventually(wanted, async || {
        let found = state(client, id).await;
        (found["state"] == wanted).then_some(found)
    })
    .await
}

#[tokio::test]
async fn rows_of_the_sdk_go_out_byte_for_byte_signed_or_in_the_mode_they_carry() {
    let ((database, client), receiver) = (database().await, Receiver::start().await);
    client
        .query_one("SELECT taskbell.watch('adcp_task_webhook_outbox', 'adcp-python-outbox')", &[])
        .await
        .unwrap();
    let daemon = Daemon::start(&database, &receiver, |tuning| {
        tuning.sealed = Some(sealed(&database));
        tuning.legacy = LegacyModes { bearer: true, hmac: true };
        let scope = SigningScope::parse("ten\u{e4}nt").unwrap();
        tuning.keys = KeySets::new(ring("test-key"), [(scope, ring("theirs"))].into());
    })
    .await;
    let mut rows = Vec::new();
    for (name, scope, authentication) in [
        ("signed", None, None),
        ("scoped", Some("ten\u{e4}nt"), None),
        ("bearer", None, Some(("Bearer", "b-0123456789"))),
        ("hmac", None, Some(("HMAC-SHA256", "schl\u{fc}ssel-\u{9375}"))),
    ] {
        let mut row = Row::new(&format!("task_{name}"), &receiver.url(&format!("/ok/{name}")));
        (row.scope, row.authentication) = (scope, authentication);
        rows.push((row.insert(&client).await, row));
    }
    // A native one beside them, through the same worker.
    issue(&client, "task_native", Some(&receiver.url("/ok/native"))).await;
    complete(&client, "task_native").await;
    daemon::delivery_in(&client, "task_native", "delivered").await;
    for (id, row) in &rows {
        let settled = state_in(&client, *id, "delivered").await;
        assert_eq!((&settled["attempt_count"], &settled["last_http_status"]), (&json!(1), &json!(200)));
        assert!(settled["lease_token"].is_null() && settled["last_error"].is_null());
        assert!(!settled["delivered_at"].is_null() && !settled["retry_until"].is_null());
        let path = row.url.rsplit("localhost").next().unwrap().split_once('/').unwrap().1;
        let post = receiver.posts().into_iter().find(|post| post.path == format!("/{path}")).unwrap();
        assert_eq!(String::from_utf8(post.body.clone()).unwrap(), row.body);
        match (row.authentication, row.scope) {
            (None, None) => assert_eq!(daemon.verify(&post, &row.url), Ok("test-key".to_owned())),
            (None, Some(scope)) => {
                let scope = SigningScope::parse(scope).unwrap();
                let jwks =
                    daemon.signer.keys().ring(Some(&scope)).unwrap().jwks(std::time::SystemTime::now());
                assert_eq!(daemon::verify(&post, &row.url, &jwks), Ok("theirs".to_owned()));
            }
            (Some(("Bearer", secret)), _) => {
                assert_eq!(post.headers["authorization"], format!("Bearer {secret}"))
            }
            (Some((_, secret)), _) => {
                let (secret, now) = (secret.into(), std::time::SystemTime::now());
                taskbell::webhook::verify::verify_hmac(&secret, &post.headers, &post.body, now).unwrap();
            }
        }
    }
    let logged: i64 = client
        .query_one(
            "SELECT count(*) FROM taskbell.attempt WHERE source = 'sealed' AND verdict = 'acknowledge'",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(logged, 4);
    daemon.stop().await;
}

#[tokio::test]
async fn a_row_that_was_tampered_with_is_quarantined_in_the_sdks_words_and_nothing_is_sent() {
    let (database, client) = database().await;
    let outbox = sealed(&database);
    for (n, column) in
        ["account_id", "task_type", "url", "operation_id", "idempotency_key", "signing_scope_id"]
            .into_iter()
            .enumerate()
    {
        let id = Row::new(&format!("task_{n}"), "https://b.example/").insert(&client).await;
        let change = match column {
            "url" => "'https://evil.example/'".to_owned(),
            "signing_scope_id" => "'other'".to_owned(),
            column => format!("{column} || 'x'"),
        };
        let sql = format!("UPDATE adcp_task_webhook_outbox SET {column} = {change} WHERE id = $1");
        client.execute(&sql, &[&id]).await.unwrap();
        let claim = outbox.claim(&room()).await.unwrap().claims.remove(0);
        let refused = claim.prepared.as_ref().unwrap_err();
        assert_eq!(refused, &Outcome::Unsendable(Unsendable::Sealed), "{column}");
        let reason = refused.reason();
        let settlement = Settlement {
            row: claim.row,
            lease: claim.lease,
            verdict: Verdict::DeadLetter,
            reason,
            attempt: None,
        };
        assert!(outbox.settle(&[settlement]).await.unwrap().lost.is_empty());
        let dead = state(&client, id).await;
        assert_eq!(dead["state"], "invalid");
        let text = dead["last_error"].as_str().unwrap();
        assert!(
            text.starts_with("stored webhook envelope failed authenticated binding verification"),
            "{text}"
        );
    }
    // Opens, but its body speaks of another task.
    let mut row = Row::new("task_body", "https://b.example/");
    row.body = row.body.replace("\"task_id\": \"task_body\"", "\"task_id\": \"task_other\"");
    row.insert(&client).await;
    let claim = outbox.claim(&room()).await.unwrap().claims.remove(0);
    assert_eq!(claim.prepared.unwrap_err(), Outcome::Unsendable(Unsendable::Sealed));
}

#[tokio::test]
async fn leases_and_settles_are_the_sdks() {
    let (database, client) = database().await;
    let (outbox, other) = (sealed(&database), sealed_with(&database, &[&[1; 32], &KEY]));
    let id = Row::new("task_a", "https://b.example/").insert(&client).await;
    let first = outbox.claim(&room()).await.unwrap().claims.remove(0);
    let claimed = state(&client, id).await;
    assert_eq!((&claimed["state"], &claimed["attempt_count"]), (&json!("in_flight"), &json!(1)));
    let token = claimed["lease_token"].as_str().unwrap();
    assert!(token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()));
    assert!(other.claim(&room()).await.unwrap().claims.is_empty());
    client
        .batch_execute("UPDATE adcp_task_webhook_outbox SET lease_expires_at = now() - interval '1 second'")
        .await
        .unwrap();
    let second = other.claim(&room()).await.unwrap().claims.remove(0);
    assert!(second.prepared.is_ok(), "every key is tried");
    let settle = |claim: &taskbell::outbox::Claim, verdict, reason| Settlement {
        row: claim.row,
        lease: claim.lease,
        verdict,
        reason,
        attempt: None,
    };
    let late = settle(&first, Verdict::DeadLetter, Some(FailureReason::Gone));
    assert_eq!(outbox.settle(&[late]).await.unwrap().lost, [first.row]);
    let after = Verdict::Release { after: Duration::from_secs(30) };
    other.settle(&[settle(&second, after, Some(FailureReason::Dns))]).await.unwrap();
    let released = state(&client, id).await;
    assert_eq!((&released["state"], &released["attempt_count"]), (&json!("pending"), &json!(2)));
    assert_eq!(released["last_error"], "SSRFValidationError: delivery failed");
    let due = outbox.next_due().await.unwrap().unwrap();
    assert!((25..=30).contains(&due.as_secs()), "{due:?}");
    // Past the horizon: expired before the next claim, live lease or not.
    client
        .batch_execute(
            "UPDATE adcp_task_webhook_outbox SET first_attempt_at = now() - interval '2 days',
             retry_until = now() - interval '1 day', available_at = now()",
        )
        .await
        .unwrap();
    assert!(outbox.claim(&room()).await.unwrap().claims.is_empty());
    assert_eq!(state(&client, id).await["state"], "expired");
    let retry_until: bool = client
        .query_one("SELECT retry_until < now() FROM adcp_task_webhook_outbox", &[])
        .await
        .unwrap()
        .get(0);
    assert!(retry_until, "the horizon is never moved");
}

#[tokio::test]
async fn neither_table_starves_behind_the_other_and_lanes_count_for_both() {
    let (database, client) = database().await;
    for n in 0..30 {
        Row::new(&format!("task_s{n}"), "https://busy.example/").insert(&client).await;
        issue(&client, &format!("task_n{n}"), Some("https://busy.example/")).await;
        complete(&client, &format!("task_n{n}")).await;
    }
    let native = daemon::outbox(&database, Arc::default());
    let both = Outboxes::new(native, Some(sealed(&database)));
    let mut sources = Vec::new();
    for _ in 0..4 {
        let room = Room::of(4, 4);
        let claims = both.claim(&room).await.unwrap().claims;
        assert_eq!(claims.len(), 4, "one destination has four slots, whoever owes");
        sources.push(claims[0].row.source.as_str());
        let settled: Vec<Settlement> = claims
            .iter()
            .map(|claim| Settlement {
                row: claim.row,
                lease: claim.lease,
                verdict: Verdict::Acknowledge,
                reason: None,
                attempt: None,
            })
            .collect();
        assert!(both.settle(&settled).await.unwrap().lost.is_empty());
    }
    assert_eq!(sources, ["native", "sealed", "native", "sealed"]);
}

#[tokio::test]
async fn the_daemon_names_what_the_table_lacks_and_operators_see_its_rows() {
    let (database, client) = database().await;
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("sdk.key");
    std::fs::write(&key, KEY).unwrap();
    let table = |name: &str| {
        vec![
            ("TASKBELL_SOURCES__SEALED__TABLE", name.to_owned()),
            ("TASKBELL_SOURCES__SEALED__KEY_FILES", key.to_str().unwrap().to_owned()),
        ]
    };
    let taskbell = async |arguments: &[&str], environment: Vec<(&'static str, String)>| {
        let mut command = super::cli::taskbell(Some(&database), arguments);
        command.env("TASKBELL_ADMIN__LISTEN", "127.0.0.1:0").envs(environment);
        super::cli::run(command).await
    };
    let absent = taskbell(&["run"], table("nowhere")).await;
    assert!(absent.code != 0 && absent.err.contains("there is no table nowhere"), "{absent:?}");
    client
        .batch_execute("CREATE TABLE old_outbox (LIKE adcp_task_webhook_outbox); ALTER TABLE old_outbox DROP signing_scope_id")
        .await
        .unwrap();
    let old = taskbell(&["run"], table("old_outbox")).await;
    assert!(old.code != 0 && old.err.contains("has no column signing_scope_id"), "{old:?}");
    let injected = taskbell(&["check"], table("x; drop table y")).await;
    assert!(injected.out.contains("sources.sealed.table"), "{injected:?}");
    Row::new("task_a", "https://b.example/hook?secret=1").insert(&client).await;
    let listed = taskbell(&["deliveries", "list", "--json"], table("adcp_task_webhook_outbox")).await;
    let row: Value = serde_json::from_str(listed.out.trim()).unwrap();
    assert_eq!(
        (&row["source"], &row["state"], &row["task_id"]),
        (&json!("sealed"), &json!("pending"), &json!("task_a"))
    );
    assert_eq!(row["url"], "https://b.example/hook");
    let shown = taskbell(&["deliveries", "show", "op_1", "--json"], table("adcp_task_webhook_outbox")).await;
    assert!(shown.out.contains("\"attempts\":[]"), "{shown:?}");
    let environment = table("adcp_task_webhook_outbox");
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let daemon = super::daemon::Running::start(&database, &environment).await;
    eventually("the gauge", async || {
        let metrics = daemon.get("/metrics").await.1;
        let pending = "taskbell_outbox_rows{source=\"sealed\",state=\"pending\"} 1";
        metrics.contains(pending).then_some(())
    })
    .await;
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn a_task_that_the_sdk_registered_cannot_be_registered_twice() {
    let (database, client) = database().await;
    issue(&client, "task_a", None).await;
    client
        .batch_execute("UPDATE decisioning_tasks SET webhook_registration = '\\x00', webhook_registration_nonce = '\\x00'")
        .await
        .unwrap();
    let config = json!({ "url": "https://b.example/", "operation_id": "op" }).to_string();
    let sql = "SELECT taskbell.register_webhook('task_a', $1::text::jsonb)::text";
    let refused = client.query_one(sql, &[&config]).await.unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("Python SDK"));
    drop(database);
}
