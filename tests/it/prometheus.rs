//! The alerts, the dashboard and the runbook hold together, and a real Prometheus that scrapes a real
//! daemon has an answer to each of their queries.

use std::collections::BTreeSet;
use std::path::Path;

use clap::Parser;
use serde_json::Value;
use taskbell::daemon::cli::Cli;
use taskbell::metrics::{ALL, Kind};
use yaml_rust2::{Yaml, YamlLoader};

use super::daemon::{Running, signing_key};
use super::support::panels::{Span, draw};
use super::support::prometheus::{NAMESPACE, Prometheus};
use super::support::receiver::Receiver;
use super::support::{TestDatabase, complete, eventually, issue};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn yaml(path: &str) -> Yaml {
    YamlLoader::load_from_str(&read(path)).unwrap().remove(0)
}

fn groups() -> Vec<Yaml> {
    yaml("deploy/prometheus/rules.yml")["groups"].as_vec().unwrap().clone()
}

/// Every rule of rules.yml.
fn rules() -> Vec<Yaml> {
    groups().iter().flat_map(|group| group["rules"].as_vec().unwrap().clone()).collect()
}

fn alerts() -> Vec<(String, Yaml)> {
    let named = |rule: Yaml| Some((rule["alert"].as_str()?.to_owned(), rule));
    rules().into_iter().filter_map(named).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/grafana/taskbell.json")).unwrap()
}

/// Panels that show something, each with its title.
fn panels(dashboard: &Value) -> Vec<(&str, &Value)> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels
        .filter(|panel| panel["type"] != "row")
        .map(|panel| (panel["title"].as_str().unwrap(), panel))
        .collect()
}

/// What the dashboard asks: where, and the query with its variables replaced by what Grafana would
/// put there.
fn questions(dashboard: &Value) -> Vec<(String, String)> {
    let mut questions = Vec::new();
    for (title, panel) in panels(dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            questions.push((title.to_owned(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        questions.push(("annotation".to_owned(), annotation["expr"].as_str().unwrap().to_owned()));
    }
    for (_, query) in &mut questions {
        *query = substituted(query);
    }
    questions
}

fn substituted(query: &str) -> String {
    let query =
        query.replace("$job", "taskbell").replace("$namespace", NAMESPACE).replace("$task_type", ".+");
    let query = query.replace("$__rate_interval", "5m");
    assert!(!query.contains('$'), "a variable that nobody replaces: {query}");
    query
}

/// The headings of a document as the anchors of links.
fn anchors(document: &str, level: &str) -> BTreeSet<String> {
    document.lines().filter_map(|line| line.strip_prefix(level)).map(str::to_lowercase).collect()
}

#[test]
fn every_alert_says_what_it_means_and_has_an_entry_in_the_runbook() {
    let mut told = BTreeSet::new();
    for (name, rule) in alerts() {
        let annotation = |key: &str| rule["annotations"][key].as_str().unwrap_or_default();
        assert!(!annotation("summary").is_empty() && annotation("description").ends_with('.'), "{name}");
        let anchor = name.to_lowercase();
        assert_eq!(annotation("runbook_url"), format!("https://taskbell.example/runbook#{anchor}"));
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("critical" | "warning")), "{name}: {severity:?}");
        assert!(told.insert(anchor), "{name} twice");
    }
    assert_eq!(told, anchors(&read("docs/runbook.md"), "### "));
}

#[test]
fn every_entry_of_the_runbook_says_what_to_look_at_and_what_to_do() {
    let runbook = read("docs/runbook.md");
    for entry in runbook.split("\n### ").skip(1) {
        let name = entry.lines().next().unwrap();
        for part in ["**Means:** ", "**Look:** ", "**Do:** "] {
            assert_eq!(entry.matches(part).count(), 1, "{name}: {part}");
        }
    }
    let commands: Vec<&str> =
        runbook.split('`').skip(1).step_by(2).filter(|code| code.starts_with("taskbell ")).collect();
    for command in &commands {
        // What a person puts in place of words in capitals.
        let words = command.split_whitespace().map(|word| match word {
            "ID" => "7",
            "RESULT" | "ERROR" => "{}",
            word => word,
        });
        if let Err(error) = Cli::try_parse_from(words) {
            panic!("{command}: {error}");
        }
    }
    for subcommand in ["why", "lanes", "deliveries", "check", "tasks"] {
        assert!(commands.iter().any(|command| command.split(' ').nth(1) == Some(subcommand)), "{subcommand}");
    }
}

#[test]
fn every_alert_is_tested_to_fire_and_to_be_quiet() {
    let tests = yaml("deploy/prometheus/rules_test.yml");
    // A group that this leaves out is evaluated before or after the others, as chance has it.
    let names: Vec<Yaml> = groups().iter().map(|group| group["name"].clone()).collect();
    assert_eq!(tests["group_eval_order"].as_vec(), Some(&names));
    let cases: Vec<&Yaml> = tests["tests"]
        .as_vec()
        .unwrap()
        .iter()
        .flat_map(|test| test["alert_rule_test"].as_vec().map(Vec::as_slice).unwrap_or_default())
        .collect();
    for (name, _) in alerts() {
        let of_this = || cases.iter().filter(|case| case["alertname"].as_str() == Some(&name));
        let fires = |case: &&&Yaml| case["exp_alerts"].as_vec().is_some_and(|alerts| !alerts.is_empty());
        assert!(of_this().any(|case| fires(&case)) && of_this().any(|case| !fires(&case)), "{name}");
    }
}

#[test]
fn rules_and_dashboard_name_only_metrics_that_are_exported() {
    let recorded: BTreeSet<String> =
        rules().iter().filter_map(|rule| rule["record"].as_str().map(str::to_owned)).collect();
    let exported: BTreeSet<String> = ALL
        .iter()
        .flat_map(|metric| match metric.kind {
            Kind::Histogram => {
                ["_bucket", "_sum", "_count"].map(|suffix| format!("{}{suffix}", metric.name)).to_vec()
            }
            _ => vec![metric.name.to_owned()],
        })
        .collect();
    let expressions =
        rules().iter().map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let asked = questions(&dashboard()).into_iter().map(|(_, query)| query);
    let mut named = BTreeSet::new();
    for expression in expressions.into_iter().chain(asked) {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        for word in words.filter(|word| word.contains("taskbell_")) {
            assert!(exported.contains(word) || recorded.contains(word), "{word} in {expression}");
            named.insert(word.to_owned());
        }
    }
    // Whoever adds a metric shows it.
    for metric in ALL {
        assert!(named.iter().any(|name| name.starts_with(metric.name)), "{} is nowhere", metric.name);
    }
}

#[test]
fn rules_and_dashboard_tell_installations_apart() {
    for rule in rules() {
        let expression = rule["expr"].as_str().unwrap();
        for (_, after) in expression.match_indices("by (").map(|(at, by)| expression.split_at(at + by.len()))
        {
            assert!(after.starts_with("namespace, job"), "{expression}");
        }
        assert!(!expression.contains("job="), "{expression}");
        if let Some(name) = rule["record"].as_str() {
            assert!(name.starts_with("namespace_job"), "{name}");
        }
    }
    let dashboard = dashboard();
    for (title, panel) in panels(&dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let of_one = query.matches("{job=\"$job\", namespace=\"$namespace\"").count();
            assert!(of_one > 0 && query.matches('{').count() == of_one, "{title}: {query}");
        }
    }
    for name in ["job", "namespace"] {
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let variable = variables.iter().find(|variable| variable["name"] == name).unwrap();
        assert!(variable["multi"] == false && variable["includeAll"] == false, "{name}: one at a time");
    }
}

#[test]
fn every_panel_says_what_it_shows_in_which_unit_and_links_to_the_runbook() {
    let dashboard = dashboard();
    let entries = anchors(&read("docs/runbook.md"), "### ");
    let mut ids = BTreeSet::new();
    let mut linked = BTreeSet::new();
    for (title, panel) in panels(&dashboard) {
        assert!(ids.insert(panel["id"].as_i64()), "{title}: two panels of one id");
        assert!(panel["description"].as_str().unwrap().ends_with('.'), "{title}");
        assert!(!panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap().is_empty(), "{title}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for link in panel["links"].as_array().unwrap() {
            let anchor =
                link["url"].as_str().unwrap().strip_prefix("https://taskbell.example/runbook#").unwrap();
            assert!(entries.contains(anchor), "{title}: {anchor}");
            linked.insert(anchor.to_owned());
        }
    }
    assert!(linked.len() >= 12, "{linked:?}");
    let rows = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] == "row");
    assert_eq!(
        rows.map(|row| row["title"].as_str().unwrap()).collect::<Vec<_>>(),
        ["Are buyers waiting?", "How long do people take?", "Do buyers hear?", "Are we well?"]
    );
}

#[tokio::test]
async fn prometheus_answers_every_query_of_the_dashboard_and_evaluates_every_rule() {
    let database = TestDatabase::migrated().await;
    let receiver = Receiver::start().await;
    let directory = tempfile::tempdir().unwrap();
    let key = signing_key(directory.path());
    let daemon = Running::start(
        &database,
        &[
            ("TASKBELL_SIGNING__KEY_FILES", key.as_str()),
            ("TASKBELL_HTTP__CA_FILE", receiver.ca_file.path().to_str().unwrap()),
            ("TASKBELL_GUARD__ALLOW_PRIVATE", "true"),
            ("TASKBELL_METRICS__SLA__CREATE_MEDIA_BUY", "1m"),
        ],
    )
    .await;
    let Some(prometheus) = Prometheus::start(&[&daemon.admin]).await else { return };
    // What happens before the first scrape is in no rate.
    eventually("a scrape", async || {
        (!prometheus.query("taskbell_attempts_total == 0").await.is_empty()).then_some(())
    })
    .await;

    let client = database.client().await;
    for (task, path) in [("done", "/ok"), ("gone", "/410"), ("later", "/503"), ("distrusted", "/signature")] {
        issue(&client, task, Some(&receiver.url(path))).await;
    }
    issue(&client, "failed", Some(&receiver.url("/ok"))).await;
    issue(&client, "waits", None).await;
    client
        .batch_execute(
            "UPDATE decisioning_tasks SET created_at = created_at - 3600;
             UPDATE decisioning_tasks SET state = 'working' WHERE task_id <> 'waits'",
        )
        .await
        .unwrap();
    for task in ["done", "gone", "later", "distrusted"] {
        complete(&client, task).await;
    }
    let fail =
        "UPDATE decisioning_tasks SET state = 'failed', error = '{\"code\": \"NO\", \"message\": \"no\"}'
                WHERE task_id = 'failed'";
    client.batch_execute(fail).await.unwrap();

    let dashboard = dashboard();
    for (title, query) in questions(&dashboard) {
        eventually(&format!("{title}: {query}"), async || {
            let found = prometheus.query(&query).await;
            found.iter().any(|series| finite(&series["value"][1])).then_some(())
        })
        .await;
    }
    for variable in
        dashboard["templating"]["list"].as_array().unwrap().iter().filter(|one| one["type"] == "query")
    {
        let inside = variable["definition"].as_str().unwrap().strip_prefix("label_values(").unwrap();
        let (series, label) = inside.strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
        let values = prometheus
            .get(&format!("/api/v1/label/{label}/values"), &[("match[]", &substituted(series))])
            .await;
        assert!(!values.as_array().unwrap().is_empty(), "{label} of {series}");
    }

    // Every rule was evaluated without an error; what is recorded is there; what must fire at once does.
    eventually("healthy rules", async || {
        let data = prometheus.get("/api/v1/rules", &[]).await;
        let groups = data["groups"].as_array().unwrap();
        let evaluated: Vec<&Value> =
            groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
        let broken: Vec<_> = evaluated.iter().filter(|rule| rule["health"] == "err").collect();
        assert!(broken.is_empty(), "{broken:?}");
        let healthy = evaluated.iter().filter(|rule| rule["health"] == "ok").count();
        (healthy == rules().len()).then_some(())
    })
    .await;
    for rule in rules().iter().filter_map(|rule| rule["record"].as_str()) {
        eventually(rule, async || {
            prometheus.query(rule).await.iter().any(|series| finite(&series["value"][1])).then_some(())
        })
        .await;
    }
    let fires = "ALERTS{alertname=\"TaskbellSignaturesRefused\", alertstate=\"firing\"}";
    eventually(fires, async || (!prometheus.query(fires).await.is_empty()).then_some(())).await;
    let dead = "ALERTS{alertname=~\"TaskbellDeadLetters|TaskbellTasksOverLimit\", alertstate=\"pending\"}";
    eventually(dead, async || (prometheus.query(dead).await.len() == 2).then_some(())).await;
    drop(prometheus);
    assert!(daemon.stop().success());
}

/// Draws docs/dashboard.svg from a morning that lasts some minutes: `just dashboard`. Tasks come with
/// an age, as if they had been issued hours ago; everything else happens as it is drawn.
#[tokio::test]
#[ignore = "for people"]
async fn picture() {
    let database = TestDatabase::migrated().await;
    let (steady, shaky) = (Receiver::start().await, Receiver::start().await);
    let directory = tempfile::tempdir().unwrap();
    let key = signing_key(directory.path());
    let trusted = directory.path().join("receivers.pem");
    let certificates = [&steady, &shaky].map(|one| std::fs::read_to_string(one.ca_file.path()).unwrap());
    std::fs::write(&trusted, certificates.concat()).unwrap();
    let environment = [
        ("TASKBELL_SIGNING__KEY_FILES", key.as_str()),
        ("TASKBELL_HTTP__CA_FILE", trusted.to_str().unwrap()),
        ("TASKBELL_GUARD__ALLOW_PRIVATE", "true"),
        ("TASKBELL_METRICS__SLA__CREATE_MEDIA_BUY", "4h"),
        ("TASKBELL_METRICS__SLA__SYNC_CREATIVES", "1h"),
        ("TASKBELL_METRICS__SLA__UPDATE_MEDIA_BUY", "2h"),
    ];
    let daemons =
        [Running::start(&database, &environment).await, Running::start(&database, &environment).await];
    let prometheus = Prometheus::start(&[&daemons[0].admin, &daemons[1].admin]).await.expect("a prometheus");
    eventually("two scrapes", async || (prometheus.query("up == 1").await.len() == 2).then_some(())).await;
    let now = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.unwrap().as_secs_f64()
    };
    let client = database.client().await;
    client.batch_execute(include_str!("support/morning.sql")).await.unwrap();
    let from = now();
    let mut beat = tokio::time::interval(std::time::Duration::from_millis(250));
    for n in 0..MORNING {
        beat.tick().await;
        let minute = f64::from(n) / 240.0;
        shaky.be_down((0.7..1.4).contains(&minute));
        // People begin slowly, and have a break.
        let decided = match minute {
            0.0..0.3 => n % 2,
            0.3..1.7 => 1,
            1.7..2.1 => 0,
            _ => 1 + n % 2,
        };
        let (good, bad) = (steady.url("/ok"), shaky.url("/ok"));
        let gone = steady.url("/410");
        client.execute("CALL beat($1, $2, $3, $4)", &[&good, &bad, &gone, &decided]).await.unwrap();
    }
    let span = Span { from, to: now() };
    let drawn =
        draw(&dashboard(), &prometheus, &span, |query| substituted(query).replace("[5m]", "[15s]")).await;
    std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dashboard.svg"), drawn).unwrap();
}

/// Quarters of a second.
const MORNING: i32 = 3 * 240;

fn finite(value: &Value) -> bool {
    value.as_str().unwrap().parse::<f64>().unwrap().is_finite()
}
