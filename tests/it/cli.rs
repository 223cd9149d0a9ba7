//! The command line as people and scripts use it: the binary itself, against a real database.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::{TestDatabase, issue};

/// What one command said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Its output lines as JSON documents.
    pub fn documents(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// `taskbell` in an environment of its own, with the default configuration.
pub fn taskbell(database: Option<&TestDatabase>, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskbell"));
    command.env_clear().args(arguments).kill_on_drop(true).stdin(Stdio::null());
    if let Some(database) = database {
        command.env("DATABASE_URL", &database.dsn);
    }
    command
}

pub async fn run(mut command: Command) -> Said {
    let output = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

async fn say(database: &TestDatabase, arguments: &[&str]) -> Said {
    run(taskbell(Some(database), arguments)).await
}

#[tokio::test]
async fn a_faulty_configuration_is_a_finding_each_and_no_secret() {
    let mut command = taskbell(None, &["check", "--json"]);
    command.env("TASKBELL_WORKER__LEASE", "soon").env("TASKBELL_DATABASE__URL", "postgres://u:hush@h:x/d");
    let said = run(command).await;
    assert_eq!((said.code, said.documents()[0].as_array().unwrap().len()), (1, 2), "{said:?}");
    let mut command = taskbell(None, &["check"]);
    command.env("DATABASE_URL", "postgres://u:hush@127.0.0.1:1/d");
    let refused = run(command).await;
    assert!(refused.out.contains("Connection refused"), "{refused:?}");
    let mut command = taskbell(None, &["tasks", "list", "--database-url", "postgres://u:hush@h:x/d"]);
    command.env("TASKBELL_WORKER__GRACE", "2h");
    let listed = run(command).await;
    assert_eq!(listed.code, 2);
    assert!(listed.err.contains("database.url: ") && listed.err.contains("worker.grace: "), "{listed:?}");
    assert!(!format!("{said:?} {refused:?} {listed:?}").contains("hush"));
}

#[tokio::test]
async fn keys_are_private_and_what_is_published_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key.jwk");
    let path = file.to_str().unwrap();
    let generated = run(taskbell(None, &["keys", "generate", path, "--kid", "k1"])).await;
    assert_eq!(generated.code, 0, "{generated:?}");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let private: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let published = run(taskbell(None, &["keys", "jwks", path])).await;
    let jwks: Value = serde_json::from_str(&published.out).unwrap();
    assert_eq!(jwks["keys"][0]["kid"], "k1");
    assert_eq!(jwks["keys"][0]["x"], private["x"]);
    let d = private["d"].as_str().unwrap();
    assert!(!format!("{generated:?} {published:?}").contains(d));

    let again = run(taskbell(None, &["keys", "generate", path])).await;
    assert_eq!(again.code, 2, "{again:?}");
    assert!(std::fs::read_to_string(&file).unwrap().contains(d), "the first key is still there");
}

#[tokio::test]
async fn tasks_are_listed_shown_and_settled_once() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    for id in ["t1", "t2"] {
        issue(&client, id, None).await;
    }
    let listed = say(&database, &["tasks", "list", "--json", "--limit", "1"]).await.documents();
    assert_eq!(
        (listed.len(), &listed[0]["task_id"], &listed[0]["state"]),
        (1, &json!("t1"), &json!("submitted"))
    );

    let complete = ["tasks", "complete", "t1", r#"{"media_buy_id":"m1"}"#];
    assert_eq!(say(&database, &complete).await.out, "t1 is completed\n");
    assert!(say(&database, &complete).await.out.contains("already"));
    let conflict = say(&database, &["tasks", "fail", "t1", r#"{"code":"X","message":"no"}"#]).await;
    assert_eq!((conflict.code, conflict.out.as_str()), (2, ""), "{conflict:?}");
    assert_eq!(say(&database, &["tasks", "fail", "t2", r#"{"code":"X","message":"no"}"#]).await.code, 0);

    let shown = &say(&database, &["tasks", "show", "t1", "--json"]).await.documents()[0];
    assert_eq!(shown["result"], json!({ "media_buy_id": "m1" }));
    let states: Vec<&Value> = shown["timeline"].as_array().unwrap().iter().map(|step| &step["to"]).collect();
    assert_eq!(states.last(), Some(&&json!("completed")), "{shown}");
    assert_eq!(say(&database, &["tasks", "list"]).await.out.lines().count(), 1, "only the head line");
    assert_eq!(say(&database, &["tasks", "list", "--all", "--json"]).await.documents().len(), 2);
    assert_eq!(say(&database, &["tasks", "show", "t3"]).await.code, 2);
}

#[tokio::test]
async fn deliveries_are_listed_shown_retried_and_cancelled() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    issue(&client, "t1", Some("https://buyer.example/hook?secret=hush")).await;
    assert_eq!(say(&database, &["deliveries", "list", "--json"]).await.documents(), [] as [Value; 0]);
    say(&database, &["tasks", "complete", "t1", "{}"]).await;

    let listed = say(&database, &["deliveries", "list", "--json", "--state", "pending"]).await;
    let delivery = &listed.documents()[0];
    let id = delivery["delivery_id"].to_string();
    assert_eq!(
        (&delivery["task_id"], &delivery["url"]),
        (&json!("t1"), &json!("https://buyer.example/hook"))
    );
    let key = delivery["idempotency_key"].as_str().unwrap().to_owned();
    for name in ["t1", &id, &key, "op_t1"] {
        let shown = say(&database, &["deliveries", "show", name, "--json"]).await;
        assert_eq!(shown.documents()[0]["attempts"], json!([]), "{shown:?}");
    }
    let table = say(&database, &["deliveries", "show", "t1"]).await;
    assert!(table.out.contains("delivery_id") && !table.out.contains("hush"), "{table:?}");

    assert_eq!(
        say(&database, &["deliveries", "retry", &id]).await.out,
        format!("delivery {id} is due now\n")
    );
    assert_eq!(say(&database, &["deliveries", "cancel", &id]).await.code, 0);
    let gone = say(&database, &["deliveries", "retry", &id]).await;
    assert!(gone.code == 2 && gone.err.contains("no webhook is owed"), "{gone:?}");
    assert_eq!(say(&database, &["deliveries", "list", "--state", "pending", "--json"]).await.out, "");
    assert_eq!(
        say(&database, &["deliveries", "list", "--state", "cancelled", "--json"]).await.documents().len(),
        1
    );
}

#[tokio::test]
async fn output_that_nobody_reads_to_its_end_is_no_error() {
    let mut command = taskbell(None, &["migrate", "--print"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), [].as_slice()));
}

#[tokio::test]
async fn what_ring_sends_receive_verifies_and_refuses_by_its_code() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    for (key, kid) in [("key", "mine"), ("other", "mine")] {
        let said = run(taskbell(None, &["keys", "generate", &path(key), "--kid", kid])).await;
        std::fs::write(path(&format!("{key}.jwks")), format!("{{\"keys\":[{}]}}", said.out)).unwrap();
    }
    let receive = async |jwks: &str| {
        let arguments = ["receive", "--listen", "127.0.0.1:0", "--jwks", jwks];
        let mut child = taskbell(None, &arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next_line().await.unwrap().unwrap();
        (child, lines, first.strip_prefix("listening on ").unwrap().to_owned())
    };
    let ring = async |url: &str| {
        let mut command = taskbell(None, &["ring", &format!("{url}hook?q=1")]);
        command.env("TASKBELL_SIGNING__KEY_FILES", path("key"));
        command.env("TASKBELL_GUARD__ALLOW_HTTP", "true").env("TASKBELL_GUARD__ALLOW_PRIVATE", "true");
        run(command).await
    };
    let (_buyer, mut lines, url) = receive(&path("key.jwks")).await;
    let accepted = ring(&url).await;
    assert!(accepted.code == 0 && accepted.out.contains("accepted"), "{accepted:?}");
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.starts_with("verified with mine: {") && line.contains("taskbell ring"), "{line}");
    let (_stranger, _, url) = receive(&path("other.jwks")).await;
    let refused = ring(&url).await;
    assert!(refused.code == 2 && refused.err.contains("webhook_signature_invalid"), "{refused:?}");
}

#[tokio::test]
async fn dev_shows_the_whole_way_and_stops_after_as_many_webhooks_as_asked() {
    let directory = super::support::scratch("taskbell-dev-");
    let place = directory.path().join("data");
    let arguments = ["dev", "--directory", place.to_str().unwrap(), "--deliveries", "2"];
    let mut command = taskbell(None, &arguments);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let said = tokio::time::timeout(std::time::Duration::from_secs(120), run(command)).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let verified = said.out.lines().filter(|line| line.contains("  verified ")).count();
    assert!(verified >= 2 && said.out.contains("signed by taskbell-dev"), "{said:?}");
}

#[tokio::test]
async fn every_command_has_a_manual_page_and_every_shell_its_completions() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    let made = run(taskbell(None, &["man", pages.to_str().unwrap()])).await;
    assert_eq!(made.code, 0, "{made:?}");
    let mut expected = Vec::new();
    let mut waiting =
        vec![("taskbell".to_owned(), <taskbell::daemon::cli::Cli as clap::CommandFactory>::command())];
    while let Some((name, command)) = waiting.pop() {
        let page = std::fs::read_to_string(pages.join(format!("{name}.1"))).unwrap();
        let about = command.get_about().unwrap().to_string();
        // Apostrophes and hyphens are written otherwise there.
        let begin = about.split(['\'', '-']).next().unwrap();
        assert!(page.contains(".SH DESCRIPTION") && page.contains(begin), "{name}: {begin}");
        let subcommands = command.get_subcommands().filter(|sub| sub.get_name() != "help");
        waiting.extend(subcommands.map(|sub| (format!("{name}-{}", sub.get_name()), sub.clone())));
        expected.push(format!("{name}.1"));
    }
    assert!(expected.len() > 25, "{expected:?}");
    for shell in ["bash", "zsh", "fish"] {
        let said = run(taskbell(None, &["completions", shell])).await;
        assert!(said.code == 0 && said.out.contains("past-horizon"), "{shell}");
    }
}
