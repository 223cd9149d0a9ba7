//! What was typed becomes what it means; what cannot be meant is named.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Dict;
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::check::{Check, DAY, HOUR, SECOND, TENTH, is_empty};
use super::{Config, Database, KeySource, Log, LogFormat, Metrics, Page, SealedSource, Signing, Sources};
use crate::daemon::dsn::Dsn;
use crate::daemon::telemetry;
use crate::outbox::CircuitPolicy;
use crate::registry::AdcpEnv;
use crate::task::{SigningScope, TaskType};
use crate::webhook::{GuardPolicy, LegacyModes};
use crate::worker::RetryPolicy;

macro_rules! sections {
    ($($name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name { $($field: $type),* }
    )*};
}

sections! {
    Raw {
        database: RawDatabase, worker: RawWorker, retry: RawRetry, lanes: RawLanes, signing: RawSigning, sealing: RawSealing, sources: RawSources, legacy: RawLegacy,
        guard: RawGuard, http: RawHttp, admin: RawAdmin, metrics: RawMetrics, tasks: RawTasks, retention: RawRetention,
        log: RawLog, traces: RawTraces,
    }
    RawDatabase { url: SecretString, url_file: PathBuf, max_connections: u64, statement_timeout: String, ca_file: PathBuf }
    RawWorker {
        concurrency: u64, per_lane: u64, payload_mib: u64, lease: String, deadline: String, linger: String, yield_for: String, safety_poll: String,
        probe: String, grace: String,
    }
    RawLanes { failures: u64, pause: String, max_pause: String }
    RawRetry { horizon: String, schedule: Vec<String>, jitter: f64 }
    RawSigning { key_files: Vec<PathBuf>, jwks_uri: String, scopes: BTreeMap<String, RawScope> }
    RawSealing { key_files: Vec<PathBuf> }
    RawSources { sealed: RawSealed }
    RawSealed { table: String, key_files: Vec<PathBuf>, poll: String }
    RawLegacy { bearer: bool, hmac: bool }
    RawGuard { allow_http: bool, allow_private: bool, ports: Vec<u64>, deny: Vec<String> }
    RawHttp { ca_file: PathBuf, user_agent: String }
    RawAdmin { listen: String, page: bool, page_token: SecretString, page_token_file: PathBuf }
    RawMetrics { refresh: String, task_types: Vec<String>, task_buckets: Vec<f64>, sla: BTreeMap<String, String> }
    RawTasks { fail_after: BTreeMap<String, String> }
    RawRetention { keep: String }
    RawLog { format: String, filter: String }
    RawTraces { endpoint: String }
}

/// One of `[signing.scopes.NAME]`, where the reference has no defaults to give.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawScope {
    key_files: Vec<PathBuf>,
    jwks_uri: String,
}

impl Raw {
    /// `typed` is what file and environment say, without the defaults.
    pub(super) fn check(self, typed: &Dict, sources: &Sources, problems: &mut Vec<String>) -> Config {
        let mut check = Check { problems };
        let production =
            AdcpEnv::parse(sources.environment.get("ADCP_ENV").map(String::as_str)) == AdcpEnv::Production;

        let lease = check.time("worker.lease", &self.worker.lease, SECOND..=HOUR);
        let deadline = check.time("worker.deadline", &self.worker.deadline, TENTH..=HOUR);
        let grace = check.time("worker.grace", &self.worker.grace, Duration::ZERO..=HOUR);
        if let (Some(lease), Some(deadline)) = (lease, deadline) {
            check.refuse(
                deadline + DEADLINE_MARGIN > lease,
                "worker.deadline",
                "must be at least 5s shorter than worker.lease, or attempts outlive their claim",
            );
        }
        if let (Some(lease), Some(grace)) = (lease, grace) {
            check.refuse(grace >= lease, "worker.grace", "must be shorter than worker.lease");
        }
        let linger = check.time("worker.linger", &self.worker.linger, Duration::ZERO..=HOUR);
        let yield_for = check.time("worker.yield_for", &self.worker.yield_for, Duration::ZERO..=HOUR);
        let safety_poll = check.time("worker.safety_poll", &self.worker.safety_poll, TENTH..=HOUR);
        let probe = check.time("worker.probe", &self.worker.probe, SECOND..=HOUR);
        let concurrency = check.count("worker.concurrency", self.worker.concurrency, 1..=100_000);
        let per_lane = check.count("worker.per_lane", self.worker.per_lane, 1..=100_000);
        let payload_mib = check.count("worker.payload_mib", self.worker.payload_mib, 1..=1024);

        let horizon = check.time("retry.horizon", &self.retry.horizon, DAY..=DAY * 7);
        let schedule = self
            .retry
            .schedule
            .iter()
            .enumerate()
            .filter_map(|(at, text)| check.time(&format!("retry.schedule[{at}]"), text, TENTH..=DAY * 7));
        let schedule: Vec<Duration> = schedule.collect();
        check.refuse(self.retry.schedule.is_empty(), "retry.schedule", "must have at least one delay");
        check.refuse(!(0.0..1.0).contains(&self.retry.jitter), "retry.jitter", "must be from 0 to below 1");

        let circuits = self.lanes.check(&mut check);
        let signing = self.signing.check(production, &mut check);
        check.files("sealing.key_files", &self.sealing.key_files);
        let sealed = self.sources.sealed.check(&mut check);
        let legacy = |scheme: &str, on: bool| on && (!production || says(typed, "legacy", scheme));
        let legacy = LegacyModes {
            bearer: legacy("bearer", self.legacy.bearer),
            hmac: legacy("hmac", self.legacy.hmac),
        };
        let guard = self.guard.check(production, &mut check);
        check.refuse(
            self.http.user_agent.is_empty()
                || !self.http.user_agent.bytes().all(|b| (0x20..0x7f).contains(&b)),
            "http.user_agent",
            "must be printable ASCII, and not empty",
        );
        let admin: Option<SocketAddr> = self.admin.listen.parse().ok();
        check.refuse(admin.is_none(), "admin.listen", "must be an address and a port, like 127.0.0.1:9464");
        let page = self.admin.check_page(admin, &mut check);
        let fail_after = check.by_type("tasks.fail_after", &self.tasks.fail_after, &self.metrics.task_types);
        let metrics = self.metrics.check(&mut check);
        let keep = check.time("retention.keep", &self.retention.keep, DAY..=DAY * 3650);
        let log = self.log.check(&mut check);
        let traces = self.traces.check(sources, &mut check);
        let database = self.database.check(sources, &mut check);

        // Whatever was refused stands here as zero or empty; `load` then hands out no `Config`.
        Config {
            production,
            database,
            concurrency,
            per_lane,
            payload: payload_mib * 1024 * 1024,
            lease: lease.unwrap_or_default(),
            deadline: deadline.unwrap_or_default(),
            linger: linger.unwrap_or_default(),
            yield_for: yield_for.unwrap_or_default(),
            safety_poll: safety_poll.unwrap_or_default(),
            probe: probe.unwrap_or_default(),
            grace: grace.unwrap_or_default(),
            horizon: horizon.unwrap_or_default(),
            retry: RetryPolicy { schedule, jitter: self.retry.jitter },
            circuits,
            signing,
            sealing_key_files: self.sealing.key_files,
            sealed,
            legacy,
            guard,
            http_ca_file: some(self.http.ca_file),
            user_agent: self.http.user_agent,
            admin: admin.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0))),
            page,
            metrics,
            fail_after,
            keep: keep.unwrap_or_default(),
            log,
            traces,
        }
    }
}

impl RawLanes {
    fn check(self, check: &mut Check<'_>) -> CircuitPolicy {
        let failures = check.count("lanes.failures", self.failures, 1..=1_000_000);
        let pause = check.time("lanes.pause", &self.pause, TENTH..=HOUR);
        let max_pause = check.time("lanes.max_pause", &self.max_pause, TENTH..=HOUR * 24);
        if let (Some(pause), Some(max_pause)) = (pause, max_pause) {
            check.refuse(max_pause < pause, "lanes.max_pause", "must not be shorter than lanes.pause");
        }
        CircuitPolicy {
            failures: u32::try_from(failures).unwrap_or(u32::MAX),
            pause: pause.unwrap_or_default(),
            max_pause: max_pause.unwrap_or_default(),
        }
    }
}

impl RawSigning {
    fn check(self, production: bool, check: &mut Check<'_>) -> Signing {
        check.refuse(
            production && self.key_files.is_empty() && self.scopes.is_empty(),
            "signing.key_files",
            "ADCP_ENV=production needs a key; make one with `taskbell keys generate`",
        );
        let default = key_source("signing", self.key_files, self.jwks_uri, check);
        let scopes = self.scopes.into_iter().filter_map(|(name, raw)| {
            let key = format!("signing.scopes.{name}");
            check.refuse(raw.key_files.is_empty(), &format!("{key}.key_files"), "needs at least one file");
            let source = key_source(&key, raw.key_files, raw.jwks_uri, check);
            let scope = SigningScope::parse(&name);
            check.refuse(scope.is_err(), &key, "must have 1 to 255 bytes and no control characters");
            Some((scope.ok()?, source))
        });
        Signing { default, scopes: scopes.collect() }
    }
}

impl RawSealed {
    fn check(self, check: &mut Check<'_>) -> Option<SealedSource> {
        let poll = check.time("sources.sealed.poll", &self.poll, TENTH..=HOUR);
        check.files("sources.sealed.key_files", &self.key_files);
        check.refuse(
            self.table.is_empty() != self.key_files.is_empty(),
            "sources.sealed",
            "needs both, the table and the key_files of the SDK's processes",
        );
        if self.table.is_empty() {
            return None;
        }
        check.refuse(
            !is_table_name(&self.table),
            "sources.sealed.table",
            "must be a lower-case name of at most 45 characters, or schema.name",
        );
        Some(SealedSource { table: self.table, key_files: self.key_files, poll: poll.unwrap_or_default() })
    }
}

/// `name` or `schema.name`: it becomes part of statements.
fn is_table_name(text: &str) -> bool {
    let plain = |name: &str| {
        let first = |b: u8| b.is_ascii_lowercase() || b == b'_';
        (1..=45).contains(&name.len())
            && name.bytes().next().is_some_and(first)
            && name.bytes().all(|b| first(b) || b.is_ascii_digit())
    };
    match text.split_once('.') {
        Some((schema, name)) => plain(schema) && plain(name),
        None => plain(text),
    }
}

fn key_source(key: &str, key_files: Vec<PathBuf>, jwks_uri: String, check: &mut Check<'_>) -> KeySource {
    check.files(&format!("{key}.key_files"), &key_files);
    let https = url::Url::parse(&jwks_uri).is_ok_and(|url| url.scheme() == "https");
    check.refuse(!jwks_uri.is_empty() && !https, &format!("{key}.jwks_uri"), "must be an https URL");
    KeySource { key_files, jwks_uri: Some(jwks_uri).filter(|uri| !uri.is_empty()) }
}

impl RawGuard {
    fn check(self, production: bool, check: &mut Check<'_>) -> GuardPolicy {
        const PRODUCTION: &str = "is for development: not with ADCP_ENV=production";
        check.refuse(production && self.allow_http, "guard.allow_http", PRODUCTION);
        check.refuse(production && self.allow_private, "guard.allow_private", PRODUCTION);
        let ports: Vec<u16> =
            self.ports.iter().filter_map(|port| u16::try_from(*port).ok().filter(|port| *port > 0)).collect();
        check.refuse(ports.len() != self.ports.len(), "guard.ports", "must be ports from 1 to 65535");
        let (mut deny, mut deny_hosts) = (Vec::new(), Vec::new());
        for (at, entry) in self.deny.iter().enumerate() {
            let address = entry.parse::<IpNet>().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from));
            match (address, url::Host::parse(entry.trim_start_matches('.'))) {
                (Ok(net), _) => deny.push(net),
                (_, Ok(url::Host::Domain(name))) if !entry.contains('*') => deny_hosts.push(name),
                _ => check.refuse(
                    true,
                    &format!("guard.deny[{at}]"),
                    "must be a network (192.0.2.0/24), an address, or a host, which hosts below it follow; no scheme, port, path or `*`",
                ),
            }
        }
        GuardPolicy {
            allow_http: self.allow_http,
            allow_private: self.allow_private,
            ports: Some(ports).filter(|ports| !ports.is_empty()),
            deny,
            deny_hosts,
        }
    }
}

impl RawAdmin {
    /// The page, if it is wanted: beyond loopback only for whoever has a token.
    fn check_page(self, listen: Option<SocketAddr>, check: &mut Check<'_>) -> Option<Page> {
        let token = check.secret("admin.page_token", &self.page_token, some(self.page_token_file));
        let short = token.as_ref().is_some_and(|token| token.expose_secret().chars().count() < MIN_TOKEN);
        check.refuse(short, "admin.page_token", "must have at least 16 characters, better 32 random ones");
        let beyond = listen.is_some_and(|listen| !listen.ip().is_loopback());
        check.refuse(
            self.page && beyond && token.is_none(),
            "admin.page",
            "needs admin.page_token or admin.page_token_file where admin.listen is not a loopback address",
        );
        self.page.then_some(Page { token })
    }
}

impl RawMetrics {
    fn check(self, check: &mut Check<'_>) -> Metrics {
        let refresh = check.time("metrics.refresh", &self.refresh, SECOND..=HOUR);
        for (at, name) in self.task_types.iter().enumerate() {
            check.refuse(
                name == "other" || TaskType::parse(name.as_str()).is_err(),
                &format!("metrics.task_types[{at}]"),
                "must be a task type: printable ASCII without spaces, and not `other`",
            );
        }
        let finite = self.task_buckets.iter().all(|bound| bound.is_finite() && *bound > 0.0);
        let grow = self.task_buckets.windows(2).all(|pair| pair[0] < pair[1]);
        check.refuse(
            self.task_buckets.is_empty() || !finite || !grow,
            "metrics.task_buckets",
            "must be seconds above 0, each more than the one before",
        );
        let sla = check.by_type("metrics.sla", &self.sla, &self.task_types);
        Metrics {
            refresh: refresh.unwrap_or_default(),
            task_types: self.task_types,
            task_buckets: self.task_buckets,
            sla,
        }
    }
}

impl RawLog {
    fn check(self, check: &mut Check<'_>) -> Log {
        let format = match self.format.as_str() {
            "auto" => Some(LogFormat::Auto),
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            "journald" => Some(LogFormat::Journald),
            _ => None,
        };
        check.refuse(format.is_none(), "log.format", "must be auto, text, json or journald");
        check.refuse(
            telemetry::filter(&self.filter).is_err(),
            "log.filter",
            "must be a filter like info or taskbell=debug,warn",
        );
        Log { format: format.unwrap_or(LogFormat::Auto), filter: self.filter }
    }
}

impl RawTraces {
    /// Where spans are sent to; the variable of OpenTelemetry counts where the key is empty.
    fn check(self, sources: &Sources, check: &mut Check<'_>) -> Option<url::Url> {
        let built = cfg!(feature = "otlp");
        check.refuse(
            !built && !self.endpoint.is_empty(),
            "traces.endpoint",
            "needs a build with OpenTelemetry: cargo install --features otlp",
        );
        let standard = sources.environment.get("OTEL_EXPORTER_OTLP_ENDPOINT").filter(|_| built);
        let text = Some(&self.endpoint).filter(|text| !text.is_empty()).or(standard)?;
        let base = url::Url::parse(&format!("{}/v1/traces", text.trim_end_matches('/'))).ok();
        let base = base.filter(|url| matches!(url.scheme(), "http" | "https"));
        let secret = base.as_ref().is_some_and(|url| !url.username().is_empty() || url.password().is_some());
        check.refuse(secret, "traces.endpoint", "must not carry a user name or password");
        check.refuse(
            base.is_none(),
            "traces.endpoint",
            "must be an http or https URL, as http://127.0.0.1:4318",
        );
        base
    }
}

impl RawDatabase {
    fn check(self, sources: &Sources, check: &mut Check<'_>) -> Database {
        let max_connections = check.count("database.max_connections", self.max_connections, 4..=1000);
        // Postgres takes milliseconds, and 0 for no limit.
        let statement_timeout =
            check.time("database.statement_timeout", &self.statement_timeout, TENTH..=HOUR);
        let url = self.url(sources, check);
        if let Some(Err(error)) = url.as_ref().map(|url| Dsn::parse(url.expose_secret())) {
            check.refuse(true, "database.url", &error.to_string());
        }
        Database {
            url,
            max_connections,
            statement_timeout: statement_timeout.unwrap_or_default(),
            ca_file: some(self.ca_file),
        }
    }

    /// The flag; else the key or its file; else `DATABASE_URL`. What is empty says nothing.
    fn url(&self, sources: &Sources, check: &mut Check<'_>) -> Option<SecretString> {
        let given = |url: Option<&String>| Some(SecretString::from(url?.trim())).filter(|url| !is_empty(url));
        if let Some(url) = given(sources.database_url.as_ref()) {
            return Some(url);
        }
        match (is_empty(&self.url), some(self.url_file.clone())) {
            (false, Some(_)) => {
                check.refuse(true, "database.url, database.url_file", "give one of them, not both");
                None
            }
            (false, None) => Some(self.url.clone()),
            (true, Some(file)) => match std::fs::read_to_string(&file) {
                Ok(text) => {
                    let url = given(Some(&text));
                    check.refuse(url.is_none(), "database.url_file", &format!("{} is empty", file.display()));
                    url
                }
                Err(error) => {
                    let problem = format!("{} cannot be read: {error}", file.display());
                    check.refuse(true, "database.url_file", &problem);
                    None
                }
            },
            (true, None) => given(sources.environment.get("DATABASE_URL")),
        }
    }
}

fn says(typed: &Dict, section: &str, key: &str) -> bool {
    typed.get(section).and_then(|section| section.as_dict()).is_some_and(|section| section.contains_key(key))
}

fn some(path: PathBuf) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then_some(path)
}

/// Of a token that opens the page.
const MIN_TOKEN: usize = 16;
/// Between the end of an attempt and the end of its lease: time to settle.
const DEADLINE_MARGIN: Duration = Duration::from_secs(5);
