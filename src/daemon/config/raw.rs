//! What was typed, and what it means.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Toml};
use secrecy::SecretString;
use serde::Deserialize;

use super::environment::environment;
use super::{Config, DEFAULT_PATH, Database, Log, LogFormat, Metrics, Sources};
use crate::webhook::LegacySchemes;
use crate::webhook::guard::GuardPolicy;
use crate::worker::RetryPolicy;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    database: RawDatabase,
    worker: RawWorker,
    retry: RawRetry,
    signing: RawSigning,
    legacy: RawLegacy,
    guard: RawGuard,
    http: RawHttp,
    admin: RawAdmin,
    metrics: RawMetrics,
    retention: RawRetention,
    log: RawLog,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDatabase {
    url: SecretString,
    url_file: PathBuf,
    max_connections: usize,
    statement_timeout: String,
    ca_file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWorker {
    concurrency: usize,
    per_lane: usize,
    lease: String,
    deadline: String,
    linger: String,
    safety_poll: String,
    probe: String,
    grace: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRetry {
    horizon: String,
    schedule: Vec<String>,
    jitter: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSigning {
    key_files: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLegacy {
    bearer: bool,
    hmac: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGuard {
    allow_http: bool,
    allow_private: bool,
    ports: Vec<u16>,
    deny: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    ca_file: PathBuf,
    user_agent: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAdmin {
    listen: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    refresh: String,
    task_types: Vec<String>,
    task_buckets: Vec<f64>,
    #[serde(default)]
    sla: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRetention {
    keep: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    format: LogFormat,
    filter: String,
}

impl Raw {
    /// Means what was typed; collects what cannot be meant.
    pub(super) fn check(self, sources: &Sources, problems: &mut Vec<String>) -> Config {
        let mut time = |key: &str, text: &str| match humantime::parse_duration(text) {
            Ok(duration) => duration,
            Err(_) => {
                problems.push(format!("{key}: `{text}` is no duration; write \"30s\", \"5m\", \"24h\""));
                Duration::ZERO
            }
        };
        let lease = time("worker.lease", &self.worker.lease);
        let deadline = time("worker.deadline", &self.worker.deadline);
        let grace = time("worker.grace", &self.worker.grace);
        let horizon = time("retry.horizon", &self.retry.horizon);
        let schedule: Vec<Duration> =
            self.retry.schedule.iter().map(|text| time("retry.schedule", text)).collect();
        let sla =
            self.metrics.sla.iter().map(|(name, text)| (name.clone(), time("metrics.sla", text))).collect();
        let linger = time("worker.linger", &self.worker.linger);
        let safety_poll = time("worker.safety_poll", &self.worker.safety_poll);
        let probe = time("worker.probe", &self.worker.probe);
        let statement_timeout = time("database.statement_timeout", &self.database.statement_timeout);
        let refresh = time("metrics.refresh", &self.metrics.refresh);
        let keep = time("retention.keep", &self.retention.keep);

        let mut refuse = |wrong: bool, problem: &str| {
            if wrong {
                problems.push(problem.to_owned());
            }
        };
        let production = sources.environment.get("ADCP_ENV").is_some_and(|value| value == "production");
        refuse(
            deadline + DEADLINE_MARGIN > lease,
            "worker.deadline: must be at least 5s shorter than worker.lease, or attempts outlive their claim",
        );
        refuse(grace >= lease, "worker.grace: must be shorter than worker.lease");
        refuse(self.worker.concurrency == 0, "worker.concurrency: must be at least 1");
        refuse(self.worker.per_lane == 0, "worker.per_lane: must be at least 1");
        refuse(self.database.max_connections < 2, "database.max_connections: must be at least 2");
        refuse(
            !(DAY..=DAY * 7).contains(&horizon),
            "retry.horizon: must be from 24h to 7d (AdCP, delivery_retry_horizon_seconds)",
        );
        refuse(schedule.is_empty(), "retry.schedule: must have at least one delay");
        refuse(schedule.iter().any(Duration::is_zero), "retry.schedule: every delay must be longer than 0");
        refuse(!(0.0..1.0).contains(&self.retry.jitter), "retry.jitter: must be from 0 to below 1");
        refuse(safety_poll.is_zero(), "worker.safety_poll: must be longer than 0");
        refuse(probe < Duration::from_secs(1), "worker.probe: must be at least 1s");
        refuse(statement_timeout.is_zero(), "database.statement_timeout: must be longer than 0");
        refuse(refresh < Duration::from_secs(1), "metrics.refresh: must be at least 1s");
        refuse(keep < DAY, "retention.keep: must be at least 1d");
        let buckets = &self.metrics.task_buckets;
        refuse(
            buckets.is_empty() || buckets.windows(2).any(|pair| pair[0] >= pair[1]),
            "metrics.task_buckets: must be numbers that grow",
        );
        refuse(production && self.guard.allow_http, "guard.allow_http: not with ADCP_ENV=production");
        refuse(production && self.guard.allow_private, "guard.allow_private: not with ADCP_ENV=production");
        refuse(
            production && self.signing.key_files.is_empty(),
            "signing.key_files: ADCP_ENV=production needs a key; make one with `taskbell keys generate`",
        );
        let admin = self.admin.listen.parse().unwrap_or_else(|_| {
            problems.push("admin.listen: must be an address and a port, like 127.0.0.1:9464".to_owned());
            SocketAddr::from(([127, 0, 0, 1], 0))
        });
        let url = self.database.url(sources, problems);
        let some = |path: PathBuf| (!path.as_os_str().is_empty()).then_some(path);
        Config {
            production,
            database: Database {
                url,
                max_connections: self.database.max_connections,
                statement_timeout,
                ca_file: some(self.database.ca_file),
            },
            concurrency: self.worker.concurrency,
            per_lane: self.worker.per_lane,
            lease,
            deadline,
            linger,
            safety_poll,
            probe,
            grace,
            horizon,
            retry: RetryPolicy { schedule, jitter: self.retry.jitter },
            key_files: self.signing.key_files,
            legacy: LegacySchemes {
                bearer: self.legacy.bearer && legacy_allowed(production, "bearer", sources),
                hmac: self.legacy.hmac && legacy_allowed(production, "hmac", sources),
            },
            guard: GuardPolicy {
                allow_http: self.guard.allow_http,
                allow_private: self.guard.allow_private,
                ports: self.guard.ports,
                deny: self.guard.deny.iter().map(|host| host.to_ascii_lowercase()).collect(),
            },
            http_ca_file: some(self.http.ca_file),
            user_agent: self.http.user_agent,
            admin,
            metrics: Metrics {
                refresh,
                task_types: self.metrics.task_types,
                task_buckets: self.metrics.task_buckets,
                sla,
            },
            keep,
            log: Log { format: self.log.format, filter: self.log.filter },
        }
    }
}

/// In production a legacy scheme is on only if a file or the environment says so; the compiled-in
/// default does not count.
fn legacy_allowed(production: bool, scheme: &str, sources: &Sources) -> bool {
    let key = format!("legacy.{scheme}");
    let in_environment = environment(sources).any(|(name, _)| name == key);
    let file = match &sources.file {
        Some(file) => Figment::from(Toml::file(file)),
        None => Figment::from(Toml::file(DEFAULT_PATH)),
    };
    !production || in_environment || file.find_value(&key).is_ok()
}

impl RawDatabase {
    /// The flag, then the file, then the key, then `DATABASE_URL`.
    fn url(&self, sources: &Sources, problems: &mut Vec<String>) -> Option<SecretString> {
        use secrecy::ExposeSecret;
        if let Some(url) = &sources.database_url {
            return Some(url.as_str().into());
        }
        let (typed, file) = (self.url.expose_secret(), &self.url_file);
        match (typed.is_empty(), file.as_os_str().is_empty()) {
            (false, false) => {
                problems.push("database.url, database.url_file: give one of them, not both".to_owned());
                None
            }
            (false, true) => Some(self.url.clone()),
            (true, false) => match std::fs::read_to_string(file) {
                Ok(text) => Some(text.trim().into()),
                Err(error) => {
                    problems.push(format!("database.url_file: {} cannot be read: {error}", file.display()));
                    None
                }
            },
            (true, true) => sources.environment.get("DATABASE_URL").map(|url| url.as_str().into()),
        }
    }
}

const DAY: Duration = Duration::from_secs(86_400);
/// Between the end of an attempt and the end of its lease: time to settle.
const DEADLINE_MARGIN: Duration = Duration::from_secs(5);
