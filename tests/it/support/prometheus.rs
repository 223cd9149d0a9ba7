//! A real Prometheus that scrapes a daemon and evaluates our rules.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use url::Url;

use super::panels::{STEP, Span};

/// The label that tells this installation from others of the same job.
pub const NAMESPACE: &str = "sellers";

/// One server with a directory of its own. Both go with it, also when the test is killed.
pub struct Prometheus {
    child: Child,
    address: String,
}

impl Prometheus {
    /// Scrapes these addresses every second. `None` where there is no Prometheus, unless
    /// `INTEROP=required`.
    pub async fn start(targets: &[&str]) -> Option<Self> {
        let search = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&search).any(|place| place.join("prometheus").exists()) {
            let required = std::env::var("INTEROP").as_deref() == Ok("required");
            assert!(!required, "INTEROP=required, and there is no prometheus in the PATH");
            eprintln!("SKIPPED: there is no prometheus in the PATH");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("taskbell-prometheus-").tempdir().unwrap().keep();
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/rules.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n\
             - job_name: taskbell\n  \
               static_configs: [{{targets: {targets:?}, labels: {{namespace: {NAMESPACE}}}}}]\n",
            rules.display()
        );
        std::fs::write(directory.join("prometheus.yml"), config).unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", UNTIL_WE_ARE_GONE, "sh"])
            .arg(&directory)
            .arg("prometheus")
            .arg(format!("--config.file={}", directory.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = tokio::task::spawn_blocking(move || {
            let mut lines = log.map_while(Result::ok);
            let line = lines.find(|line| line.contains("msg=\"Listening on\"")).expect("it listens");
            // The rest must be read, or it blocks when the pipe is full.
            std::thread::spawn(move || lines.for_each(drop));
            line.rsplit("address=").next().unwrap().to_owned()
        })
        .await
        .unwrap();
        Some(Self { child, address })
    }

    /// The result of one query, now.
    pub async fn query(&self, expression: &str) -> Vec<Value> {
        let data = self.get("/api/v1/query", &[("query", expression)]).await;
        data["result"].as_array().unwrap().clone()
    }

    /// The series of one query over a span of time.
    pub async fn range(&self, expression: &str, span: &Span) -> Vec<Value> {
        let [from, to, step] = [span.from, span.to, STEP].map(|seconds| seconds.to_string());
        let parameters = [("query", expression), ("start", &from), ("end", &to), ("step", &step)];
        self.get("/api/v1/query_range", &parameters).await["result"].as_array().unwrap().clone()
    }

    /// The data that its HTTP API answers with.
    pub async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let url = Url::parse_with_params(&format!("http://{}{path}", self.address), parameters).unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let text = client.get(url).send().await.unwrap().text().await.unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        // While it starts, it says so in plain text.
        assert!(answer.is_null() || answer["status"] == "success", "{parameters:?}: {text}");
        match answer.is_null() {
            true => serde_json::json!({ "result": [], "groups": [] }),
            false => answer["data"].clone(),
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The pipe on its standard input ends with us, however we end.
const UNTIL_WE_ARE_GONE: &str =
    "directory=$1; shift; \"$@\" & read -r _; kill -9 $!; wait; rm -rf \"$directory\"";
