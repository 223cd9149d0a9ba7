//! Configuration: defaults, file, environment and flags become values that can work.
//!
//! `config/taskbell.toml` is compiled in as the defaults. Each layer above it is held against
//! it key by key (`layers`); what was typed then becomes values that fit together (`raw`).
//! Everything that is wrong is reported at once, each by the name of its key, and no value is
//! repeated: it may be a secret.

mod layers;
mod check;
mod raw;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use figment::Figment;
use figment::providers::Serialized;
use secrecy::SecretString;
use serde::Deserialize;

use crate::outbox::CircuitPolicy;
use crate::task::SigningScope;
use crate::webhook::{GuardPolicy, LegacyModes};
use crate::worker::RetryPolicy;

/// The commented reference, which is also the defaults.
pub const REFERENCE: &str = include_str!("../../../config/taskbell.toml");
/// Read when there is no `--config`.
pub const DEFAULT_PATH: &str = "/etc/taskbell/taskbell.toml";

/// What the edge hands in: nothing here reads the environment by itself.
#[derive(Default, Clone)]
pub struct Sources {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// `--database-url`.
    pub database_url: Option<String>,
    /// The process's environment.
    pub environment: BTreeMap<String, String>,
}

/// The environment and the connection string carry secrets: only the file is shown.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("file", &self.file).finish_non_exhaustive()
    }
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
    /// Bytes of the bodies in flight at once.
    pub payload: usize,
    /// How long a claim is good for.
    pub lease: Duration,
    /// For one whole attempt.
    pub deadline: Duration,
    /// How long to stay awake after the last row.
    pub linger: Duration,
    /// How long webhooks wait for sellers who keep the database busy.
    pub yield_for: Duration,
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
    /// When a lane that fails is left alone.
    pub circuits: CircuitPolicy,
    /// Where the signing keys are.
    pub signing: Signing,
    /// Keys that seal registrations at rest, the current one first.
    pub sealing_key_files: Vec<PathBuf>,
    /// The AdCP Python SDK's outbox, where it is served too.
    pub sealed: Option<SealedSource>,
    /// Which legacy schemes may be used.
    pub legacy: LegacyModes,
    /// What may be called.
    pub guard: GuardPolicy,
    /// More trusted certificates for buyers' endpoints.
    pub http_ca_file: Option<PathBuf>,
    /// The `User-Agent`.
    pub user_agent: String,
    /// Where the admin listener is.
    pub admin: SocketAddr,
    /// The page for people, where it is wanted.
    pub page: Option<Page>,
    /// Metrics.
    pub metrics: Metrics,
    /// By task type, after how long an open task is failed.
    pub fail_after: BTreeMap<String, Duration>,
    /// How long the journal is kept.
    pub keep: Duration,
    /// Logs.
    pub log: Log,
    /// Where spans are sent to, by OTLP over HTTP.
    pub traces: Option<url::Url>,
}

/// The page for people, on the admin listener.
#[derive(Debug, Clone)]
pub struct Page {
    /// Who has it may look; `None` for whoever is on this machine.
    pub token: Option<SecretString>,
}

/// The AdCP Python SDK's outbox.
#[derive(Debug, Clone)]
pub struct SealedSource {
    /// The table's name, with a schema before it or without.
    pub table: String,
    /// The application keys of the SDK's processes.
    pub key_files: Vec<PathBuf>,
    /// How often to look where the table does not ring.
    pub poll: Duration,
}

/// Where the signing keys are.
#[derive(Debug, Clone, Default)]
pub struct Signing {
    /// For registrations without a signing scope.
    pub default: KeySource,
    /// For those with one.
    pub scopes: BTreeMap<SigningScope, KeySource>,
}

/// Where the keys of one set are.
#[derive(Debug, Clone, Default)]
pub struct KeySource {
    /// Private key files: JWK, JWKS or PEM.
    pub key_files: Vec<PathBuf>,
    /// Where buyers fetch the public halves, for `check`.
    pub jwks_uri: Option<String>,
}

impl Signing {
    /// Whether any key is read from a file.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.iter().any(|(_, source)| !source.key_files.is_empty())
    }

    /// Every set, the default one first.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&SigningScope>, &KeySource)> {
        let scopes = self.scopes.iter().map(|(scope, source)| (Some(scope), source));
        std::iter::once((None, &self.default)).chain(scopes)
    }
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

impl Database {
    /// How long an answer is waited for: the server has ended the statement before that, so a
    /// connection that is still silent will never answer.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.statement_timeout + ANSWER_MARGIN
    }
}

const ANSWER_MARGIN: Duration = Duration::from_secs(3);

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
    /// Text on a terminal, the journal under systemd, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For collectors.
    Json,
    /// systemd's journal, by its own protocol.
    Journald,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot work:\n{}", .0.iter().map(|problem| format!("  - {problem}")).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Reads every source.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that is wrong, by key; no value is repeated.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let typed = layers::read(sources, &mut problems);
        let raw = Figment::from(Serialized::defaults(layers::reference()))
            .merge(Serialized::globals(&typed))
            .extract::<raw::Raw>();
        let config = match raw {
            Ok(raw) => raw.check(&typed, sources, &mut problems),
            Err(errors) => {
                // The layers fit the reference, and the reference fits `Raw`: only a build
                // whose reference and `Raw` disagree comes here.
                problems
                    .extend(errors.into_iter().map(|error| format!("{}: is misread", error.path.join("."))));
                return Err(ConfigError(problems));
            }
        };
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    }
}
