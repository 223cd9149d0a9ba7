//! Configuration: defaults, file, environment and flags become values that can work.
//!
//! `config/taskbell.toml` is compiled in as the defaults. What was typed is [`Raw`]; it stops
//! here. Everything that is wrong is reported at once, each by the name of its key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use secrecy::SecretString;
use serde::Deserialize;

use crate::webhook::LegacySchemes;
use crate::webhook::guard::GuardPolicy;
use crate::worker::RetryPolicy;

/// The commented reference, which is also the defaults.
pub const REFERENCE: &str = include_str!("../../config/taskbell.toml");
/// Read when there is no `--config`.
pub const DEFAULT_PATH: &str = "/etc/taskbell/taskbell.toml";

/// What the edge hands in: nothing here reads the environment by itself.
#[derive(Debug, Default, Clone)]
pub struct Sources {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// `--database-url`.
    pub database_url: Option<String>,
    /// The process's environment.
    pub environment: BTreeMap<String, String>,
}

/// A configuration that can work.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whether `ADCP_ENV` says production.
    pub production: bool,
    /// How to reach the database.
    pub database: Database,
    /// Attempts in flight, in all.
    pub concurrency: usize,
    /// Attempts in flight to one destination.
    pub per_lane: usize,
    /// How long a claim is good for.
    pub lease: Duration,
    /// For one whole attempt.
    pub deadline: Duration,
    /// How long to stay awake after the last row.
    pub linger: Duration,
    /// How often to look although nobody rang.
    pub safety_poll: Duration,
    /// How often the listener proves itself.
    pub probe: Duration,
    /// How long a stop waits.
    pub grace: Duration,
    /// From the first attempt to the last.
    pub horizon: Duration,
    /// When to try again.
    pub retry: RetryPolicy,
    /// Private key files, the signing one first.
    pub key_files: Vec<PathBuf>,
    /// Which legacy schemes may be used.
    pub legacy: LegacySchemes,
    /// What may be called.
    pub guard: GuardPolicy,
    /// More trusted certificates for buyers' endpoints.
    pub http_ca_file: Option<PathBuf>,
    /// The `User-Agent`.
    pub user_agent: String,
    /// Where the admin listener is.
    pub admin: SocketAddr,
    /// Metrics.
    pub metrics: Metrics,
    /// How long the journal is kept.
    pub keep: Duration,
    /// Logs.
    pub log: Log,
}

/// How to reach the database.
#[derive(Debug, Clone)]
pub struct Database {
    /// The connection string; `None` when nobody gave one.
    pub url: Option<SecretString>,
    /// Connections in the pool.
    pub max_connections: usize,
    /// No statement may run longer.
    pub statement_timeout: Duration,
    /// More trusted certificates.
    pub ca_file: Option<PathBuf>,
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// How often gauges are refreshed.
    pub refresh: Duration,
    /// More task types for labels.
    pub task_types: Vec<String>,
    /// Bounds of the task histograms, in seconds.
    pub task_buckets: Vec<f64>,
    /// Limits on the age of open tasks, by type.
    pub sla: BTreeMap<String, Duration>,
}

/// How logs look.
#[derive(Debug, Clone)]
pub struct Log {
    /// Their form.
    pub format: LogFormat,
    /// A `tracing` filter.
    pub filter: String,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot work:\n{}", .0.iter().map(|problem| format!("  - {problem}")).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Reads every source.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that is wrong, by key; no value that may be secret is
    /// repeated.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut figment = Figment::from(Toml::string(REFERENCE));
        figment = match &sources.file {
            Some(file) => figment.merge(Toml::file_exact(file)),
            None => figment.merge(Toml::file(DEFAULT_PATH)),
        };
        let reference: toml_keys::Keys = toml_keys::of(&Figment::from(Toml::string(REFERENCE)));
        for (name, value) in environment(sources) {
            match reference.parse(&name, &value) {
                Some(value) => figment = figment.merge(Serialized::default(&name, value)),
                None => problems.push(format!(
                    "TASKBELL_{}: there is no such key, or the value has the wrong type",
                    name.to_uppercase().replace('.', "__")
                )),
            }
        }
        let raw = match figment.extract::<Raw>() {
            Ok(raw) => raw,
            Err(errors) => {
                // Figment stops at the first error of each kind; its text names key and type.
                problems.extend(errors.into_iter().map(|error| describe(&error)));
                return Err(ConfigError(problems));
            }
        };
        let config = raw.check(sources, &mut problems);
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    }
}

/// `TASKBELL_A__B` as `a.b`. Kubernetes puts `TASKBELL_PORT` and `TASKBELL_SERVICE_…` of a
/// service named taskbell into every pod: names without a level are not ours.
fn environment(sources: &Sources) -> impl Iterator<Item = (String, String)> + '_ {
    sources.environment.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix("TASKBELL_")?;
        name.contains("__").then(|| (name.to_ascii_lowercase().replace("__", "."), value.clone()))
    })
}

/// A figment error without the value that it found, which may be a secret.
fn describe(error: &figment::Error) -> String {
    use figment::error::Kind;
    let key = error.path.join(".");
    match &error.kind {
        Kind::UnknownField(field, known) => {
            let key = if key.is_empty() { field } else { &key };
            format!("{key}: there is no such key; known here are {}", known.join(", "))
        }
        Kind::InvalidType(_, wanted) | Kind::InvalidValue(_, wanted) => format!("{key}: must be {wanted}"),
        Kind::UnknownVariant(_, known) => format!("{key}: must be one of {}", known.join(", ")),
        Kind::MissingField(field) => format!("{key}.{field}: is missing"),
        _ => format!("{key}: {error}"),
    }
}

/// Which type each key of the reference has, to read environment variables by.
mod toml_keys {
    use figment::Figment;
    use figment::value::{Dict, Value};

    pub(super) struct Keys(Dict);

    pub(super) fn of(figment: &Figment) -> Keys {
        Keys(figment.extract().unwrap_or_default())
    }

    impl Keys {
        /// The text as a value of the key's type; `None` for an unknown key or another type.
        pub(super) fn parse(&self, key: &str, text: &str) -> Option<Value> {
            let found = Value::from(self.0.clone()).find(key);
            let inside = |table: &str| key.strip_prefix(table).is_some_and(|rest| !rest.is_empty());
            match found {
                // A string stays one, whatever it looks like: a password may be `12345`.
                Some(Value::String(..)) => Some(Value::from(text)),
                Some(Value::Bool(..)) => text.parse::<bool>().ok().map(Value::from),
                Some(Value::Num(_, figment::value::Num::F64(_))) => text.parse::<f64>().ok().map(Value::from),
                Some(Value::Num(..)) => text.parse::<u64>().ok().map(Value::from),
                Some(Value::Array(..)) => {
                    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                    Some(Value::from(
                        parts
                            .map(|part| part.parse::<u64>().map_or_else(|_| Value::from(part), Value::from))
                            .collect::<Vec<_>>(),
                    ))
                }
                None if inside("metrics.sla.") => Some(Value::from(text)),
                _ => None,
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
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
    fn check(self, sources: &Sources, problems: &mut Vec<String>) -> Config {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn load(environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::load(&Sources { environment, ..Sources::default() })
    }

    #[test]
    fn the_reference_file_is_the_defaults() {
        let config = load(&[]).unwrap();
        assert_eq!(config.retry, RetryPolicy::default());
        assert_eq!(config.metrics.task_buckets.len(), 20);
        assert!(config.database.url.is_none());
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let error = load(&[
            ("ADCP_ENV", "production"),
            ("TASKBELL_GUARD__ALLOW_HTTP", "true"),
            ("TASKBELL_WORKER__DEADLINE", "58s"),
            ("TASKBELL_WORKER__CONCURRENCY", "0"),
            ("TASKBELL_WORKER__NONSENSE", "1"),
            ("TASKBELL_RETRY__HORIZON", "1h"),
            ("TASKBELL_RETRY__JITTER", "much"),
            ("TASKBELL_ADMIN__LISTEN", "nowhere"),
        ])
        .unwrap_err()
        .to_string();
        for key in [
            "guard.allow_http",
            "worker.deadline",
            "worker.concurrency",
            "TASKBELL_WORKER__NONSENSE",
            "retry.horizon",
            "TASKBELL_RETRY__JITTER",
            "admin.listen",
            "signing.key_files",
        ] {
            assert!(error.contains(key), "{key} is not in: {error}");
        }
    }

    #[test]
    fn a_secret_that_looks_like_a_number_stays_a_secret() {
        use secrecy::ExposeSecret;
        let config = load(&[("TASKBELL_DATABASE__URL", "12345")]).unwrap();
        assert_eq!(config.database.url.as_ref().unwrap().expose_secret(), "12345");
        assert!(!format!("{config:?}").contains("12345"));
    }

    #[test]
    fn what_kubernetes_injects_is_ignored_and_levels_are_read() {
        let config = load(&[
            ("TASKBELL_PORT", "tcp://10.0.0.1:9464"),
            ("TASKBELL_SERVICE_HOST", "10.0.0.1"),
            ("DATABASE_URL", "postgres://a/b"),
            ("TASKBELL_METRICS__SLA__CREATE_MEDIA_BUY", "4h"),
            ("TASKBELL_GUARD__PORTS", "443, 8443"),
        ])
        .unwrap();
        assert_eq!(config.metrics.sla["create_media_buy"], Duration::from_secs(4 * 3600));
        assert_eq!(config.guard.ports, [443, 8443]);
        assert!(config.database.url.is_some());
    }

    #[test]
    fn production_needs_legacy_schemes_to_be_asked_for() {
        let key = ("TASKBELL_SIGNING__KEY_FILES", "/k");
        let config = load(&[("ADCP_ENV", "production"), key]).unwrap();
        assert_eq!(config.legacy, LegacySchemes { bearer: false, hmac: false });
        let config = load(&[("ADCP_ENV", "production"), key, ("TASKBELL_LEGACY__HMAC", "true")]).unwrap();
        assert_eq!(config.legacy, LegacySchemes { bearer: false, hmac: true });
    }

    #[test]
    fn an_unknown_key_in_a_file_is_named_with_those_that_are_known() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[worker]\nconcurency = 5\n").unwrap();
        let error =
            Config::load(&Sources { file: Some(file.path().to_owned()), ..Sources::default() }).unwrap_err();
        assert!(error.to_string().contains("worker.concurency: there is no such key"), "{error}");
    }
}
