//! Keys as operators handle them: made, rotated, published, compared, told apart by scope.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use taskbell::task::SigningScope;
use taskbell::webhook::{KeyRing, KeySets, LegacyModes};

use super::cli::{Said, run, taskbell};
use super::support::daemon::{Daemon, delivery, delivery_in, ring, verify};
use super::support::receiver::Receiver;
use super::support::{INSERT, TestDatabase, complete, eventually};

async fn keys(arguments: &[&str]) -> Said {
    run(taskbell(None, &[&["keys"], arguments].concat())).await
}

fn kids(document: &str) -> Vec<String> {
    let jwks: Value = serde_json::from_str(document).unwrap();
    assert!(!document.contains("\"d\""), "a private key is shown");
    jwks["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

async fn generate(directory: &Path, name: &str, more: &[&str]) -> String {
    let file = directory.join(name).to_str().unwrap().to_owned();
    let said = keys(&[&["generate", &file], more].concat()).await;
    assert_eq!(said.code, 0, "{said:?}");
    file
}

#[tokio::test]
async fn a_rotation_publishes_the_new_key_first_and_keeps_the_file_private() {
    let directory = tempfile::tempdir().unwrap();
    let file =
        generate(directory.path(), "key.jwk", &["--kid", "old", "--algorithm", "ecdsa-p256-sha256"]).await;
    assert_eq!(kids(&keys(&["jwks", &file]).await.out), ["old"]);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let said = keys(&["rotate", &file]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("signs in 1h"), "{said:?}");
    let published = kids(&keys(&["jwks", &file]).await.out);
    assert_eq!((published.len(), published[0].as_str()), (2, "old"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    let text = std::fs::read_to_string(&file).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["keys"][1]["crv"], "P-256");
    assert!(document["keys"][0]["exp"].as_u64() > document["keys"][1]["nbf"].as_u64());
    // A second one has to wait for the first, and what is refused changes nothing.
    let again = keys(&["rotate", &file]).await;
    assert!(again.code != 0 && again.err.contains("a rotation is under way"), "{again:?}");
    let hasty = keys(&["rotate", &file, "--overlap", "1m"]).await;
    assert!(hasty.code != 0 && hasty.err.contains("--overlap"), "{hasty:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    assert!(keys(&["rotate", "/nowhere"]).await.err.contains("cannot be read"));
}

#[tokio::test]
async fn a_running_daemon_follows_its_key_file() {
    let database = TestDatabase::migrated().await;
    let directory = tempfile::tempdir().unwrap();
    let file = generate(directory.path(), "key.jwk", &["--kid", "old"]).await;
    let daemon =
        super::daemon::Running::start(&database, &[("TASKBELL_SIGNING__KEY_FILES", file.as_str())]).await;
    assert_eq!(kids(&daemon.get("/.well-known/jwks.json").await.1), ["old"]);
    assert_eq!(keys(&["rotate", &file, "--lead", "0s"]).await.code, 0);
    let expected = kids(&keys(&["jwks", &file]).await.out);
    eventually("the new key is published", async || {
        (kids(&daemon.get("/.well-known/jwks.json").await.1) == expected).then_some(())
    })
    .await;
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn each_signing_scope_signs_with_its_own_key() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let scope = SigningScope::parse("tenant").unwrap();
    let daemon = Daemon::start(&database, &receiver, |tuning| {
        tuning.keys = KeySets::new(ring("default"), [(scope.clone(), ring("theirs"))].into());
    })
    .await;
    let client = database.client().await;
    for (id, scope) in [("task_a", Some("tenant")), ("task_b", None), ("task_c", Some("nobody"))] {
        client.execute(INSERT, &[&id]).await.unwrap();
        let config = json!({ "url": receiver.url(&format!("/ok/{id}")), "operation_id": "op" }).to_string();
        let sql = "SELECT taskbell.register_webhook($1, $2::text::jsonb, signing_scope => $3)::text";
        client.query_one(sql, &[&id, &config, &scope]).await.unwrap();
        complete(&client, id).await;
    }
    delivery_in(&client, "task_a", "delivered").await;
    delivery_in(&client, "task_b", "delivered").await;
    eventually("the reason", async || {
        (delivery(&client, "task_c").await["last_reason"] == "unknown_signing_scope").then_some(())
    })
    .await;
    let jwks = |scope: Option<&SigningScope>| {
        daemon.signer.keys().ring(scope).unwrap().jwks(std::time::SystemTime::now())
    };
    for (path, scope, kid) in [("/ok/task_a", Some(&scope), "theirs"), ("/ok/task_b", None, "default")] {
        let post = receiver.posts().into_iter().find(|post| post.path == path).unwrap();
        assert_eq!(verify(&post, &receiver.url(path), &jwks(scope)), Ok(kid.to_owned()));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn keys_can_be_replaced_while_webhooks_go_out() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let daemon = Daemon::start(&database, &receiver, |tuning| {
        tuning.keys = KeyRing::default().into();
        tuning.legacy = LegacyModes { bearer: false, hmac: false };
    })
    .await;
    let client = database.client().await;
    super::support::issue(&client, "task_a", Some(&receiver.url("/ok"))).await;
    complete(&client, "task_a").await;
    eventually("the reason", async || {
        (delivery(&client, "task_a").await["last_reason"] == "no_signing_key").then_some(())
    })
    .await;
    daemon.signer.replace_keys(ring("at-last").into());
    client.batch_execute("UPDATE taskbell.outbox SET available_at = now(); NOTIFY taskbell").await.unwrap();
    delivery_in(&client, "task_a", "delivered").await;
    let post = receiver.posts().remove(0);
    assert_eq!(daemon.verify(&post, &receiver.url("/ok")), Ok("at-last".to_owned()));
    daemon.stop().await;
}

#[tokio::test]
async fn check_compares_our_keys_with_the_ones_that_buyers_fetch() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let directory = tempfile::tempdir().unwrap();
    let file = generate(directory.path(), "key.jwk", &["--kid", "k1"]).await;
    let sealing = generate(directory.path(), "seal.jwk", &["--sealing", "--kid", "s1"]).await;
    let check = async || {
        let mut command = taskbell(Some(&database), &["check", "--json"]);
        command
            .env("TASKBELL_SIGNING__KEY_FILES", &file)
            .env("TASKBELL_SIGNING__JWKS_URI", receiver.url("/json"))
            .env("TASKBELL_SEALING__KEY_FILES", &sealing)
            .env("TASKBELL_HTTP__CA_FILE", receiver.ca_file.path());
        let said = run(command).await;
        let findings: Value = serde_json::from_str(&said.out).unwrap();
        let finding = |name: &str| {
            findings.as_array().unwrap().iter().find(|finding| finding["check"] == name).unwrap().clone()
        };
        assert_eq!(finding("sealing key")["says"], "seals with s1");
        (said.code, finding("published keys")["says"].as_str().unwrap().to_owned())
    };
    receiver.serve_json(r#"{"keys":[]}"#);
    let (code, says) = check().await;
    assert!(code == 1 && says.contains("`k1` is not published"), "{says}");
    receiver.serve_json(&keys(&["jwks", &file]).await.out);
    let (code, says) = check().await;
    assert!(code == 0 && says.contains("buyers find every key"), "{says}");
}
