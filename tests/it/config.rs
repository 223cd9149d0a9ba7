//! Configuration: what wins, and what is refused, all of it at once and by name.

use std::net::SocketAddr;
use std::time::Duration;

use secrecy::ExposeSecret;
use taskbell::daemon::config::{Config, ConfigError, LogFormat, REFERENCE, Sources};
use taskbell::webhook::LegacyModes;
use taskbell::worker::RetryPolicy;
use tempfile::NamedTempFile;

/// The sources with these variables and this file.
fn sources(environment: &[(&str, &str)], file: &NamedTempFile) -> Sources {
    Sources {
        file: Some(file.path().to_owned()),
        database_url: None,
        environment: environment
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect(),
    }
}

fn file(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn load(environment: &[(&str, &str)], text: &str) -> Result<Config, ConfigError> {
    Config::load(&sources(environment, &file(text)))
}

fn problems(environment: &[(&str, &str)], text: &str) -> Vec<String> {
    load(environment, text).unwrap_err().0
}

/// One problem, and that its line begins with the key.
fn check(environment: &[(&str, &str)], text: &str, key: &str) {
    let problems = problems(environment, text);
    let named = problems.iter().filter(|problem| problem.starts_with(&format!("{key}: "))).count();
    assert_eq!(
        (named, problems.len()),
        (1, 1),
        "{key} is not the one problem of {environment:?} {text}: {problems:?}"
    );
}

#[test]
fn the_reference_is_the_defaults_and_a_valid_file() {
    let config = load(&[], "").unwrap();
    assert_eq!(format!("{config:?}"), format!("{:?}", load(&[], REFERENCE).unwrap()));
    assert_eq!(config.retry, RetryPolicy::default());
    assert_eq!(config.metrics.task_buckets.len(), 20);
    assert_eq!(config.log.format, LogFormat::Auto);
    assert!(config.database.url.is_none());
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
    let text = "[worker]\nconcurrency = 7\nper_lane = 3\n[metrics.sla]\ncreate_media_buy = \"4h\"\n";
    let config = load(
        &[
            ("TASKBELL_WORKER__PER_LANE", "5"),
            ("TASKBELL_METRICS__SLA__SYNC_CREATIVES", "1h"),
            ("TASKBELL_METRICS__TASK_BUCKETS", "0.5, 60"),
            ("TASKBELL_GUARD__PORTS", "443,8443"),
            ("TASKBELL_SIGNING__KEY_FILES", "1234, /b.jwk"),
        ],
        text,
    )
    .unwrap();
    assert_eq!((config.concurrency, config.per_lane, config.lease), (7, 5, Duration::from_secs(60)));
    assert_eq!(config.metrics.sla["create_media_buy"], Duration::from_secs(4 * 3600));
    assert_eq!(config.metrics.sla["sync_creatives"], Duration::from_secs(3600));
    assert_eq!(config.metrics.task_buckets, [0.5, 60.0]);
    assert_eq!(config.guard.ports, Some(vec![443, 8443]));
    assert_eq!(config.signing.default.key_files, ["1234", "/b.jwk"].map(std::path::PathBuf::from));
    assert_eq!(config.admin, SocketAddr::from(([127, 0, 0, 1], 9464)));
}

#[test]
fn the_connection_string_comes_from_flag_then_key_or_its_file_then_database_url() {
    let secret = file("postgres://from-url-file/d\n");
    let url_file = format!("[database]\nurl_file = {:?}\n", secret.path());
    let environment = [("DATABASE_URL", "postgres://from-database-url/d")];
    let found =
        |sources: &Sources| Config::load(sources).unwrap().database.url.unwrap().expose_secret().to_owned();

    assert_eq!(found(&sources(&environment, &file(""))), "postgres://from-database-url/d");
    assert_eq!(found(&sources(&environment, &file(&url_file))), "postgres://from-url-file/d");
    let key = file("[database]\nurl = \"postgres://from-key/d\"\n");
    assert_eq!(found(&sources(&environment, &key)), "postgres://from-key/d");
    let flag = Sources { database_url: Some("postgres://from-flag/d".into()), ..sources(&environment, &key) };
    assert_eq!(found(&flag), "postgres://from-flag/d");
}

#[test]
fn each_wrong_key_is_the_one_problem_named() {
    for (text, key) in [
        ("[worker]\nconcurency = 5", "worker.concurency"),
        ("[nonsense]\na = 1", "nonsense"),
        ("worker = 5", "worker"),
        ("[worker]\nconcurrency = \"many\"", "worker.concurrency"),
        ("[worker]\nconcurrency = 0", "worker.concurrency"),
        ("[worker]\nconcurrency = -1", "worker.concurrency"),
        ("[worker]\nper_lane = 0", "worker.per_lane"),
        ("[worker]\nlease = \"soon\"", "worker.lease"),
        ("[worker]\nlease = 60", "worker.lease"),
        ("[worker]\ndeadline = \"56s\"", "worker.deadline"),
        ("[worker]\ndeadline = \"0s\"", "worker.deadline"),
        ("[worker]\nlease = \"18446744073709551615s\"", "worker.lease"),
        ("[worker]\ngrace = \"60s\"", "worker.grace"),
        ("[worker]\nsafety_poll = \"0s\"", "worker.safety_poll"),
        ("[worker]\nprobe = \"10ms\"", "worker.probe"),
        ("[database]\nmax_connections = 3", "database.max_connections"),
        ("[database]\nstatement_timeout = \"500us\"", "database.statement_timeout"),
        ("[database]\nurl = \"nowhere\"", "database.url"),
        ("[database]\nurl = \"host=a\"\nurl_file = \"/b\"", "database.url, database.url_file"),
        ("[database]\nurl_file = \"/does/not/exist\"", "database.url_file"),
        ("[retry]\nhorizon = \"23h\"", "retry.horizon"),
        ("[retry]\nhorizon = \"8d\"", "retry.horizon"),
        ("[retry]\nschedule = []", "retry.schedule"),
        ("[retry]\nschedule = [\"5s\", \"0s\"]", "retry.schedule[1]"),
        ("[retry]\njitter = 1", "retry.jitter"),
        ("[retry]\njitter = nan", "retry.jitter"),
        ("[signing]\nkey_files = [\"\"]", "signing.key_files"),
        ("[signing]\nkey_files = \"/one\"", "signing.key_files"),
        ("[legacy]\nbearer = \"yes\"", "legacy.bearer"),
        ("[guard]\nports = [0]", "guard.ports"),
        ("[guard]\nports = [65536]", "guard.ports"),
        ("[guard]\ndeny = [\"good.example\", \"https://bad.example\"]", "guard.deny[1]"),
        ("[guard]\ndeny = [\"*.bad.example\"]", "guard.deny[0]"),
        ("[guard]\ndeny = [\"\"]", "guard.deny[0]"),
        ("[http]\nuser_agent = \"a\\nb\"", "http.user_agent"),
        ("[admin]\nlisten = \"localhost\"", "admin.listen"),
        ("[metrics]\nrefresh = \"0s\"", "metrics.refresh"),
        ("[metrics]\ntask_types = [\"other\"]", "metrics.task_types[0]"),
        ("[metrics]\ntask_buckets = [5, 1]", "metrics.task_buckets"),
        ("[metrics]\ntask_buckets = [1, nan]", "metrics.task_buckets"),
        ("[metrics.sla]\ncreate_media_by = \"4h\"", "metrics.sla.create_media_by"),
        ("[metrics.sla]\ncreate_media_buy = \"0s\"", "metrics.sla.create_media_buy"),
        ("[retention]\nkeep = \"1h\"", "retention.keep"),
        ("[log]\nformat = \"xml\"", "log.format"),
        ("[log]\nfilter = \"taskbell=loud\"", "log.filter"),
    ] {
        check(&[], text, key);
    }
    for (name, text) in [
        ("TASKBELL_WORKER__CONCURENCY", "5"),
        ("TASKBELL_WORKER__CONCURRENCY", "many"),
        ("TASKBELL_WORKER__CONCURRENCY", ""),
        ("TASKBELL_GUARD__ALLOW_HTTP", "1"),
        ("TASKBELL_METRICS__SLA", "4h"),
        // One underscore: what was meant would be ignored in silence.
        ("TASKBELL_GUARD_DENY", "bad.example"),
        ("TASKBELL_DATABASE_URL", "postgres://u:p@h/d"),
    ] {
        check(&[(name, text)], "", name);
    }
}

#[test]
fn production_refuses_what_is_for_development() {
    let environment = [("ADCP_ENV", "production")];
    let key = "[signing]\nkey_files = [\"/k\"]\n";
    check(&environment, "", "signing.key_files");
    check(&environment, &format!("{key}[guard]\nallow_http = true"), "guard.allow_http");
    check(&environment, &format!("{key}[guard]\nallow_private = true"), "guard.allow_private");
    assert!(load(&environment, key).unwrap().production);
}

#[test]
fn production_needs_legacy_schemes_to_be_asked_for() {
    let key = "[signing]\nkey_files = [\"/k\"]\n";
    let production = ("ADCP_ENV", "production");
    let legacy = |environment: &[(&str, &str)], text: &str| load(environment, text).unwrap().legacy;
    assert_eq!(legacy(&[], ""), LegacyModes { bearer: true, hmac: true });
    assert_eq!(legacy(&[production], key), LegacyModes { bearer: false, hmac: false });
    assert_eq!(
        legacy(&[production, ("TASKBELL_LEGACY__HMAC", "true")], key),
        LegacyModes { bearer: false, hmac: true }
    );
    assert_eq!(
        legacy(&[production], &format!("{key}[legacy]\nbearer = true")),
        LegacyModes { bearer: true, hmac: false }
    );
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let problems = problems(
        &[
            ("ADCP_ENV", "production"),
            ("TASKBELL_RETRY__JITTER", "much"),
            ("TASKBELL_WORKER__NONSENSE", "1"),
            ("TASKBELL_GUARD_DENY", "x"),
        ],
        "[worker]\nconcurency = 5\nconcurrency = 0\nlease = 60\ndeadline = \"58s\"\n\
         [guard]\nallow_http = true\n[admin]\nlisten = \"nowhere\"\n[retry]\nhorizon = \"1h\"\n",
    );
    let keys = problems.iter().map(|problem| problem.split(':').next().unwrap());
    let mut keys: Vec<&str> = keys.collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "TASKBELL_GUARD_DENY",
            "TASKBELL_RETRY__JITTER",
            "TASKBELL_WORKER__NONSENSE",
            "admin.listen",
            "guard.allow_http",
            "retry.horizon",
            "signing.key_files",
            "worker.concurency",
            "worker.concurrency",
            "worker.deadline",
            "worker.lease",
        ]
    );
}

#[test]
fn no_value_is_repeated_whatever_is_wrong_with_it() {
    let database = |value: &str| format!("[database]\nurl = {value}\n");
    for (environment, text) in [
        (vec![("TASKBELL_DATABASE__URL", "hush")], String::new()),
        (vec![("TASKBELL_DATABASE__URLL", "hush"), ("TASKBELL_DATABASE_URL", "hush")], String::new()),
        (vec![], database("[\"hush\"]")),
        (vec![], database("postgres://u:hush@h/d")),
        (vec![], database("\"postgres://u:hush@h:port/d\"")),
        (vec![], database("\"host=h password=very hush=x\"")),
        (vec![], database("\"hush\"\nurl = \"hush\"")),
        (vec![], database("\"\"\nurl_file = [\"hush\"]")),
        (vec![("TASKBELL_WORKER__LEASE", "hush"), ("TASKBELL_LOG__FILTER", "hush=hush")], String::new()),
    ] {
        let file = file(&text);
        let sources = sources(&environment, &file);
        let error = Config::load(&sources).unwrap_err();
        assert!(!format!("{error} {error:?} {sources:?}").contains("hush"), "{error}");
    }
}

#[test]
fn a_secret_that_looks_like_a_number_stays_a_secret() {
    let config = load(&[("TASKBELL_DATABASE__URL", "host=h password=12345")], "").unwrap();
    assert!(!format!("{config:?}").contains("12345"));
    let config = load(&[("TASKBELL_HTTP__USER_AGENT", "12345")], "").unwrap();
    assert_eq!(config.user_agent, "12345");
}

#[test]
fn what_kubernetes_injects_for_a_service_named_taskbell_is_ignored() {
    let injected = [
        ("TASKBELL_PORT", "tcp://10.0.0.1:9464"),
        ("TASKBELL_PORT_9464_TCP", "tcp://10.0.0.1:9464"),
        ("TASKBELL_PORT_9464_TCP_ADDR", "10.0.0.1"),
        ("TASKBELL_SERVICE_HOST", "10.0.0.1"),
        ("TASKBELL_SERVICE_PORT_METRICS", "9464"),
        ("TASKBELL_ADMIN_SERVICE_HOST", "10.0.0.1"),
        ("TASKBELL_ADMIN_PORT_9464_TCP_PROTO", "tcp"),
    ];
    assert_eq!(format!("{:?}", load(&injected, "").unwrap()), format!("{:?}", load(&[], "").unwrap()));
}

#[test]
fn a_file_that_was_asked_for_must_be_there_and_be_toml() {
    let gone = Sources { file: Some("/does/not/exist.toml".into()), ..Sources::default() };
    assert!(Config::load(&gone).unwrap_err().to_string().contains("/does/not/exist.toml cannot be read"));
    let problems = problems(&[], "[worker]\nlease = \"60s\"\n= 5\n");
    assert!(problems[0].ends_with("line 3: is not TOML"), "{problems:?}");
}

#[test]
fn a_page_beyond_loopback_needs_a_token_and_a_token_some_length() {
    let token = file("0123456789abcdef0123456789abcdef\n");
    let path = token.path().to_str().unwrap();
    assert!(load(&[], "").unwrap().page.is_none());
    assert!(load(&[], "[admin]\npage = true").unwrap().page.unwrap().token.is_none());
    let beyond = "[admin]\npage = true\nlisten = \"0.0.0.0:9464\"\n";
    let config = load(&[], &format!("{beyond}page_token_file = \"{path}\"")).unwrap();
    assert!(!format!("{config:?}").contains("0123456789"));
    let token = config.page.unwrap().token.unwrap();
    assert_eq!(token.expose_secret(), "0123456789abcdef0123456789abcdef");
    check(&[], beyond, "admin.page");
    check(&[], "[admin]\npage = true\npage_token = \"short\"", "admin.page_token");
    check(&[], "[admin]\npage_token_file = \"/nonexistent\"", "admin.page_token_file");
    let both = format!("[admin]\npage_token = \"0123456789abcdef\"\npage_token_file = \"{path}\"");
    check(&[], &both, "admin.page_token, admin.page_token_file");
}
