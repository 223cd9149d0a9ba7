//! The examples, run as they stand, with the daemon beside them.

use std::path::Path;
use std::process::Stdio;

use secrecy::ExposeSecret;
use serde_json::json;
use taskbell::webhook::{SigningAlgorithm, SigningKey};
use tokio::process::Command;

use super::cli::{run, taskbell};
use super::daemon::Running;
use super::support::peer::installed;
use super::support::receiver::{Post, Receiver};
use super::support::{TestDatabase, eventually};

async fn daemon(database: &TestDatabase, receiver: &Receiver, more: &[(&str, &str)]) -> Running {
    let directory = tempfile::tempdir().unwrap().keep();
    let key = directory.join("key.jwk");
    let jwk = SigningKey::generate(SigningAlgorithm::Ed25519, Some("k1")).unwrap();
    std::fs::write(&key, jwk.to_private_jwk().unwrap().expose_secret()).unwrap();
    let mut environment = vec![
        ("TASKBELL_SIGNING__KEY_FILES", key.to_str().unwrap()),
        ("TASKBELL_HTTP__CA_FILE", receiver.ca_file.path().to_str().unwrap()),
        ("TASKBELL_GUARD__ALLOW_PRIVATE", "true"),
    ];
    environment.extend(more);
    let daemon = Running::start(database, &environment).await;
    std::fs::remove_dir_all(directory).unwrap();
    daemon
}

async fn first_post(receiver: &Receiver) -> Post {
    eventually("the webhook", async || receiver.posts().into_iter().next()).await
}

async fn succeed(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out.into_owned()
}

#[tokio::test]
async fn plain_sql_rings_the_buyer() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let daemon = daemon(&database, &receiver, &[]).await;
    let script = std::fs::read_to_string("examples/plain.sql").unwrap();
    // What psql would do with its variable.
    let script = script.replace(":'callback'", &format!("'{}'", receiver.url("/ok")));
    database.client().await.batch_execute(&script).await.unwrap();
    let body = first_post(&receiver).await.json();
    assert_eq!(
        (&body["operation_id"], &body["context"]),
        (&json!("op_sql"), &json!({ "campaign": "spring" }))
    );
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn the_python_seller_needs_no_change() {
    let Some(python) = installed("INTEROP_PYTHON") else { return };
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let generate = ["keys", "generate", &path("key.jwk"), "--adcp-use", "webhook-signing"];
    assert_eq!(run(taskbell(None, &generate)).await.code, 0);
    let key = "0f".repeat(32);
    std::fs::write(path("sdk.key"), &key).unwrap();
    let mut seller = Command::new(python);
    seller
        .args(["-W", "ignore", "examples/python_seller.py", &receiver.url("/ok")])
        .env("DATABASE_URL", &database.dsn)
        .env("ENCRYPTION_KEY", &key)
        .env("SIGNING_KEY", path("key.jwk"));
    assert!(succeed(seller).await.ends_with("completed\n"));
    let more = [
        ("TASKBELL_SOURCES__SEALED__TABLE", "adcp_task_webhook_outbox"),
        ("TASKBELL_SOURCES__SEALED__KEY_FILES", &path("sdk.key")),
    ];
    let daemon = daemon(&database, &receiver, &more).await;
    assert_eq!(first_post(&receiver).await.json()["operation_id"], "op_python");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn the_typescript_seller_registers_beside_its_task() {
    let Some(modules) = installed("INTEROP_NODE") else { return };
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let daemon = daemon(&database, &receiver, &[]).await;
    // Packages are looked for beside the script.
    let script = tempfile::Builder::new().suffix(".mjs").tempfile_in(Path::new(&modules)).unwrap();
    std::fs::copy("examples/typescript_seller.mjs", script.path()).unwrap();
    let mut seller = Command::new("node");
    seller.arg(script.path()).arg(receiver.url("/ok"));
    // This driver knows no key=value strings.
    for pair in database.dsn.split(' ') {
        let (name, value) = pair.split_once('=').unwrap();
        let name = if name == "dbname" { "database" } else { name };
        seller.env(format!("PG{}", name.to_uppercase()), value.trim_matches('\''));
    }
    assert!(succeed(seller).await.ends_with("completed\n"));
    let body = first_post(&receiver).await.json();
    assert_eq!(
        (&body["operation_id"], &body["task_type"]),
        (&json!("op_typescript"), &json!("create_media_buy"))
    );
    assert_eq!(body["result"], json!({ "media_buy_id": "mb_1" }));
    eventually("the open task in the metrics", async || {
        let metrics = daemon.get("/metrics").await.1;
        let ended =
            "taskbell_task_duration_seconds_count{task_type=\"create_media_buy\",outcome=\"completed\"} 1";
        metrics.contains(ended).then_some(())
    })
    .await;
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn the_roles_may_do_what_they_must_and_nothing_else() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let owner = database.client().await;
    // Roles belong to the whole cluster: this test's own names.
    let roles = std::fs::read_to_string("examples/roles.sql").unwrap();
    let roles = roles
        .replace("taskbell_daemon", "r_daemon")
        .replace("taskbell_reader", "r_reader")
        .replace("seller", "r_seller");
    owner.batch_execute(&roles).await.unwrap();
    let as_role = |role: &str| database.dsn.replace("user=postgres", &format!("user={role}"));
    assert_ne!(as_role("x"), database.dsn, "{}", database.dsn);
    let daemon_database = TestDatabase::at(&as_role("r_daemon"));
    let daemon = daemon(&daemon_database, &receiver, &[]).await;
    let seller = TestDatabase::at(&as_role("r_seller")).client().await;
    let script = std::fs::read_to_string("examples/plain.sql").unwrap();
    let script = script
        .split("-- What became of it.")
        .next()
        .unwrap()
        .replace(":'callback'", &format!("'{}'", receiver.url("/ok")));
    seller.batch_execute(&script).await.unwrap();
    first_post(&receiver).await;
    let reader = TestDatabase::at(&as_role("r_reader")).client().await;
    eventually("what the reader sees", async || {
        let row = reader.query_one("SELECT state FROM taskbell.delivery", &[]).await.unwrap();
        (row.get::<_, &str>(0) == "delivered").then_some(())
    })
    .await;
    eventually("partitions and gauges without complaint", async || {
        daemon.get("/metrics").await.1.contains("taskbell_gauges_refreshed_timestamp_seconds").then_some(())
    })
    .await;
    let activity = "SELECT status, url FROM taskbell.webhook_activity";
    assert_eq!(reader.query_one(activity, &[]).await.unwrap().get::<_, &str>(0), "success");
    for complaint in ["permission denied", "must be owner"] {
        assert!(!daemon.log().contains(complaint), "{}", daemon.log());
    }
    for (client, statement) in [
        (&seller, "SELECT * FROM taskbell.registration"),
        (&seller, "SELECT * FROM taskbell.outbox"),
        (&seller, "SELECT taskbell.cancel_delivery(1)"),
        (&reader, "SELECT * FROM taskbell.registration"),
        (&reader, "SELECT * FROM decisioning_tasks"),
        (&reader, "DELETE FROM taskbell.attempt"),
    ] {
        let refused = client.batch_execute(statement).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{statement}");
    }
    assert!(daemon.stop().success());
    owner
        .batch_execute("DROP OWNED BY r_daemon, r_seller, r_reader; DROP ROLE r_daemon, r_seller, r_reader")
        .await
        .unwrap();
}
