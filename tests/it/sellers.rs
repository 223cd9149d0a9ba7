//! Sellers on the official AdCP Python SDK, as they are, with Taskbell beside them.
//!
//! Skipped, and saying so, where the SDK is not installed; see [`super::interop`].

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::time::SystemTime;

use serde_json::{Value, json};
use taskbell::registry::{NewTask, PostgresTaskRegistry, RegistryError, Scope, TaskRegistry};
use taskbell::task::{AccountId, Registration, SdkKeys, TaskId, TaskType, UrlSchemes};
use taskbell::webhook::verify::verify_hmac;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_postgres::Client;

use super::daemon::Running;
use super::support::daemon::verify;
use super::support::peer::{Peer, installed};
use super::support::receiver::{Post, Receiver};
use super::support::{TestDatabase, eventually};

/// The SDK as a seller's server, one command at a time.
struct Seller {
    _child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Seller {
    async fn start(python: &std::path::Path, database: &TestDatabase) -> Self {
        let mut command = Command::new(python);
        command.args(["-W", "ignore", "tests/interop/seller.py", "serve", &database.dsn]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seller = Self { _child: child, to, from };
        seller.answer().await.unwrap();
        seller.run(json!({ "do": "setup" })).await;
        seller
    }

    async fn answer(&mut self) -> Result<Value, String> {
        let line = self.from.next_line().await.unwrap().expect("the seller has ended");
        let answer: Value = serde_json::from_str(&line).unwrap();
        match answer.get("error") {
            Some(error) => Err(error.as_str().unwrap().to_owned()),
            None => Ok(answer["ok"].clone()),
        }
    }

    async fn tell(&mut self, command: Value) -> Result<Value, String> {
        self.to.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        self.answer().await
    }

    async fn run(&mut self, command: Value) -> Value {
        self.tell(command).await.unwrap()
    }

    async fn issue(&mut self, arguments: Value) -> String {
        let mut command = arguments;
        command["do"] = "issue".into();
        self.run(command).await.as_str().unwrap().to_owned()
    }
}

/// The SDK's own delivery worker.
fn worker(python: &std::path::Path, database: &TestDatabase, receiver: &Receiver) -> Child {
    Command::new(python)
        .args(["-W", "ignore", "tests/interop/seller.py", "worker", &database.dsn, "4"])
        .env("SSL_CERT_FILE", receiver.ca_file.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// The daemon on the SDK's outbox, with the keys that `seller.py` has.
struct Keys {
    directory: tempfile::TempDir,
}

impl Keys {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let jwk = json!({
            "kty": "OKP", "crv": "Ed25519", "kid": "shared",
            "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        });
        std::fs::write(directory.path().join("signing"), jwk.to_string()).unwrap();
        std::fs::write(directory.path().join("encryption"), encryption_key()).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    async fn daemon(&self, database: &TestDatabase, trusts: &Path) -> Running {
        let (signing, encryption) = (self.path("signing"), self.path("encryption"));
        let environment = [
            ("TASKBELL_SOURCES__SEALED__TABLE", "adcp_task_webhook_outbox"),
            ("TASKBELL_SOURCES__SEALED__KEY_FILES", encryption.as_str()),
            ("TASKBELL_SOURCES__SEALED__POLL", "200ms"),
            ("TASKBELL_SIGNING__KEY_FILES", signing.as_str()),
            ("TASKBELL_SIGNING__SCOPES__TENANT__KEY_FILES", signing.as_str()),
            ("TASKBELL_HTTP__CA_FILE", trusts.to_str().unwrap()),
            ("TASKBELL_GUARD__ALLOW_PRIVATE", "true"),
            ("TASKBELL_WORKER__LEASE", "16s"),
            ("TASKBELL_WORKER__DEADLINE", "10s"),
            ("TASKBELL_WORKER__GRACE", "5s"),
        ];
        Running::start(database, &environment).await
    }

    fn jwks(&self) -> Value {
        let ring = taskbell::webhook::KeyRing::parse(&std::fs::read_to_string(self.path("signing")).unwrap());
        ring.unwrap().jwks(SystemTime::now())
    }
}

fn encryption_key() -> Vec<u8> {
    (0..32).collect()
}

async fn count(client: &Client, what: &str) -> i64 {
    client
        .query_one(&format!("SELECT count(*) FROM adcp_task_webhook_outbox WHERE {what}"), &[])
        .await
        .unwrap()
        .get(0)
}

async fn post_at(receiver: &Receiver, path: &str) -> Post {
    eventually(path, async || receiver.posts().into_iter().find(|post| post.path == path)).await
}

#[tokio::test]
async fn what_the_python_sdk_owes_is_delivered_in_every_mode_it_knows() {
    let Some(python) = installed("INTEROP_PYTHON") else { return };
    let (database, receiver, keys) = (TestDatabase::migrated().await, Receiver::start().await, Keys::new());
    let mut seller = Seller::start(&python, &database).await;
    let daemon = keys.daemon(&database, receiver.ca_file.path()).await;
    let secret = "schl\u{fc}ssel-\u{9375}-0123456789abcdef-0123";
    for (name, more) in [
        ("plain", json!({})),
        ("token", json!({ "token": "t\u{f6}k\u{eb}n-0123456789-\u{65e5}\u{672c}" })),
        ("bearer", json!({ "scheme": "Bearer", "credentials": "bearer-0123456789abcdef-0123456789" })),
        ("hmac", json!({ "scheme": "HMAC-SHA256", "credentials": secret })),
        ("scoped", json!({ "scope": "tenant" })),
        ("unicode", json!({ "account": "k\u{f6}nto-\u{65e5}", "context": { "\u{fc}": "\u{1f511}" } })),
        ("failed", json!({})),
    ] {
        let (path, mut arguments) = (format!("/ok/{name}"), more.clone());
        let url = receiver.url(&format!("{path}?q=%7e&e=%C3%BC"));
        arguments["url"] = url.as_str().into();
        let id = seller.issue(arguments).await;
        let mut settle = json!({ "do": "settle", "task_id": id });
        match name {
            "failed" => settle["error"] = json!({ "code": "X", "message": "n\u{f6}" }),
            _ => settle["result"] = json!({ "media_buy_id": "mb_\u{fc}", "n": 1.0 }),
        }
        if let Some(scope) = more.get("scope") {
            settle["scope"] = scope.clone();
        }
        seller.run(settle).await;
        let post = post_at(&receiver, &path).await;
        let body = post.json();
        assert_eq!((&body["task_id"], &body["operation_id"]), (&json!(id), &json!("op_1")), "{name}");
        assert_eq!(body.get("token"), more.get("token"), "{name}");
        match name {
            "bearer" => {
                assert_eq!(post.headers["authorization"], "Bearer bearer-0123456789abcdef-0123456789");
            }
            "hmac" => {
                verify_hmac(&secret.into(), &post.headers, &post.body, SystemTime::now()).unwrap();
            }
            _ => assert_eq!(verify(&post, &url, &keys.jwks()), Ok("shared".to_owned()), "{name}"),
        }
    }
    let client = database.client().await;
    eventually("all are settled", async || (count(&client, "state = 'delivered'").await == 7).then_some(()))
        .await;
    assert_eq!(receiver.posts().len(), 7);
    let native: i64 = client
        .query_one("SELECT count(*) FROM taskbell.outbox WHERE lane IS NOT NULL", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(native, 0, "the native source owes none of them");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn the_sdks_own_receiver_takes_what_the_sdk_owed_and_taskbell_delivered() {
    let Some(python) = installed("INTEROP_PYTHON") else { return };
    let (database, keys) = (TestDatabase::migrated().await, Keys::new());
    let mut buyer = Command::new(&python);
    buyer.args(["-W", "ignore", "tests/interop/peer.py"]);
    let jwks = keys.jwks();
    let (mut buyer, mut seller) = tokio::join!(Peer::start(buyer, &jwks), Seller::start(&python, &database));
    let daemon = keys.daemon(&database, buyer.certificate.path()).await;
    for (path, more) in [
        ("/hook?q=%7e&e=%C3%BC", json!({ "token": "t\u{f6}k\u{eb}n-0123456789-\u{65e5}\u{672c}" })),
        ("/a/b%20c", json!({ "scope": "tenant", "account": "k\u{f6}nto" })),
    ] {
        let mut arguments = more.clone();
        arguments["url"] = buyer.url(path).into();
        let id = seller.issue(arguments).await;
        let mut settle =
            json!({ "do": "settle", "task_id": id, "result": { "n": 1.5, "u": "\u{fc}\u{1f511}" } });
        if let Some(scope) = more.get("scope") {
            settle["scope"] = scope.clone();
        }
        seller.run(settle).await;
        let heard = buyer.hear().await;
        assert_eq!((&heard["status"], &heard["payload"]["task_id"]), (&json!(200), &json!(id)), "{heard}");
        assert_eq!(heard["payload"]["result"], json!({ "n": 1.5, "u": "\u{fc}\u{1f511}" }));
    }
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_workers_on_one_table_lose_nothing_whoever_is_killed() {
    let Some(python) = installed("INTEROP_PYTHON") else { return };
    let (database, receiver, keys) = (TestDatabase::migrated().await, Receiver::start().await, Keys::new());
    let mut seller = Seller::start(&python, &database).await;
    let client = database.client().await;
    let total = 2000;
    seller.run(json!({ "do": "bulk", "url": receiver.url("/ok"), "count": total })).await;
    assert_eq!(count(&client, "true").await, total);
    let delivered = async |n: i64| {
        eventually("deliveries", async || (count(&client, "state = 'delivered'").await >= n).then_some(()))
            .await;
    };
    let mut theirs = worker(&python, &database, &receiver);
    delivered(20).await;
    let mut ours = keys.daemon(&database, receiver.ca_file.path()).await;
    delivered(300).await;
    theirs.kill().await.unwrap();
    ours.kill();
    let _theirs = worker(&python, &database, &receiver);
    delivered(400).await;
    let ours = keys.daemon(&database, receiver.ca_file.path()).await;
    delivered(total).await;
    assert!(ours.stop().success());
    let mut arrived: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
    for post in receiver.posts() {
        let key = post.json()["idempotency_key"].as_str().unwrap().to_owned();
        arrived.entry(key).or_default().push(post.body);
    }
    assert_eq!(i64::try_from(arrived.len()).unwrap(), total, "every row, under a key of its own");
    assert!(arrived.values().all(|bodies| bodies.windows(2).all(|pair| pair[0] == pair[1])));
    // Twice only what was in flight when somebody was killed; and a second attempt shows it.
    let twice = arrived.values().filter(|bodies| bodies.len() > 1).count();
    let again = count(&client, "attempt_count > 1").await;
    assert!(
        i64::try_from(twice).unwrap() <= again && again <= 100,
        "{twice} arrived twice, {again} tried again"
    );
    let by_us: i64 = client
        .query_one("SELECT count(DISTINCT outbox_id) FROM taskbell.attempt WHERE source = 'sealed'", &[])
        .await
        .unwrap()
        .get(0);
    assert!(by_us > 100, "both have worked: {by_us} were ours");
    assert_eq!(count(&client, "state <> 'delivered' OR lease_token IS NOT NULL").await, 0);
}

#[tokio::test]
async fn tasks_of_either_side_are_read_and_ended_by_the_other() {
    let Some(python) = installed("INTEROP_PYTHON") else { return };
    let (database, receiver, keys) = (TestDatabase::migrated().await, Receiver::start().await, Keys::new());
    let mut seller = Seller::start(&python, &database).await;
    let daemon = keys.daemon(&database, receiver.ca_file.path()).await;
    let ours = PostgresTaskRegistry::new(database.pool())
        .with_sdk_registrations(SdkKeys::parse([encryption_key().as_slice()]).unwrap());
    let account = AccountId::parse("acct").unwrap();
    let task = |path: Option<&str>| {
        NewTask {
        account: account.clone(),
        task_type: TaskType::parse("create_media_buy").unwrap(),
        request_context: Some(json!({ "c": "\u{fc}" })),
        registration: path.map(|path| {
            let config = json!({
                "url": receiver.url(path), "operation_id": "op_rust", "token": "token-0123456789-\u{fc}",
                "authentication": { "schemes": ["HMAC-SHA256"], "credentials": "0123456789abcdef0123456789abcdef" },
            });
            Registration::parse(&config, UrlSchemes::HttpsOnly).unwrap()
        }),
    }
    };
    // Rust issues with a registration that the SDK opens; the SDK ends it; Taskbell delivers.
    let id = ours.issue(task(Some("/ok/rust"))).await.unwrap();
    let refused = ours.complete(&id, Scope::Account(&account), json!({ "n": 1 })).await.unwrap_err();
    assert!(matches!(refused, RegistryError::SealedRegistration), "{refused}");
    let seen = seller.run(json!({ "do": "get", "task_id": id.as_str() })).await;
    assert_eq!((&seen["state"], &seen["account_id"]), (&json!("submitted"), &json!("acct")));
    seller.run(json!({ "do": "progress", "task_id": id.as_str(), "progress": { "percentage": 5 } })).await;
    assert_eq!(
        ours.get(&id, Scope::Operator).await.unwrap().unwrap().progress,
        Some(json!({ "percentage": 5 }))
    );
    seller.run(json!({ "do": "settle", "task_id": id.as_str(), "result": { "media_buy_id": "mb" } })).await;
    let post = post_at(&receiver, "/ok/rust").await;
    assert_eq!(
        (&post.json()["operation_id"], &post.json()["token"]),
        (&json!("op_rust"), &json!("token-0123456789-\u{fc}"))
    );
    let secret = "0123456789abcdef0123456789abcdef".into();
    verify_hmac(&secret, &post.headers, &post.body, SystemTime::now()).unwrap();
    // The SDK issues, Rust ends; the SDK sees it, and repeats the end without harm.
    let theirs = seller.issue(json!({ "url": null })).await;
    let id = TaskId::parse(theirs.as_str()).unwrap();
    ours.complete(&id, Scope::Account(&account), json!({ "a": 1, "b": [true] })).await.unwrap();
    assert_eq!(seller.run(json!({ "do": "get", "task_id": theirs })).await["state"], "completed");
    let again = json!({ "do": "settle", "task_id": theirs, "result": { "b": [true], "a": 1.0 } });
    assert_eq!(seller.tell(again).await, Ok(Value::Null));
    let other = json!({ "do": "settle", "task_id": theirs, "result": { "b": [] } });
    assert!(seller.tell(other).await.is_err());
    assert!(daemon.stop().success());
}
