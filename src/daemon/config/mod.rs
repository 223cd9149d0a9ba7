//! Configuration: defaults, file, environment and flags become values that can work.
//!
//! `config/taskbell.toml` is compiled in as the defaults. What was typed is `Raw`; it stops
//! here. Everything that is wrong is reported at once, each by the name of its key.

mod environment;
mod raw;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use secrecy::SecretString;
use serde::Deserialize;

use environment::{Keys, environment};
use raw::Raw;

use crate::webhook::LegacySchemes;
use crate::webhook::guard::GuardPolicy;
use crate::worker::RetryPolicy;

/// The commented reference, which is also the defaults.
pub const REFERENCE: &str = include_str!("../../../config/taskbell.toml");
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
        let keys = Keys::of(&Figment::from(Toml::string(REFERENCE)));
        for (name, value) in environment(sources) {
            match keys.parse(&name, &value) {
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
