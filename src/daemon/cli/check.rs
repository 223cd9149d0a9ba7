//! `check`: a line for each thing that must be right, and what to do where it is not.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use serde::Serialize;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client};

use crate::daemon::config::{Config, ConfigError, Sources};
use crate::daemon::database::{Connector, explain, tls_config};
use crate::daemon::keys::{read_key_sets, read_sealing_keys, require_signing};
use crate::daemon::published::differences;
use crate::listener::{CHANNEL, Session};
use crate::migrations;

/// One finding.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    says: String,
}

/// Runs every check; the exit code.
pub(super) async fn run(sources: &Sources, json: bool) -> anyhow::Result<u8> {
    let mut findings = Vec::new();
    let mut find = |check, ok, says: String| findings.push(Finding { check, ok, says });
    match Config::load(sources) {
        Err(ConfigError(problems)) => {
            problems.into_iter().for_each(|says| find("configuration", false, says))
        }
        Ok(config) => {
            find("configuration", true, "every key is understood".to_owned());
            signing(&config, &mut find).await;
            match read_sealing_keys(&config.sealing_key_files).map(|keys| keys.current().map(str::to_owned)) {
                Ok(Some(current)) => find("sealing key", true, format!("seals with {current}")),
                Ok(None) => find(
                    "sealing key",
                    !config.production,
                    "none: buyers' tokens and credentials stay plain in the database; make one with \
                     `taskbell keys generate --sealing` and name it in sealing.key_files"
                        .to_owned(),
                ),
                Err(error) => find("sealing key", false, format!("{error:#}")),
            }
            match tls_config(config.http_ca_file.as_deref()) {
                Ok(_) => find("certificates", true, "buyers' endpoints can be verified".to_owned()),
                Err(error) => find("certificates", false, format!("http.ca_file: {error}")),
            }
            match Connector::new(&config.database) {
                Err(error) => find("database", false, error.to_string()),
                Ok(connector) => match connector.client().await {
                    Err(error) => find("database", false, error.to_string()),
                    Ok(mut client) => {
                        if let Err(error) = database(&mut client, &mut find).await {
                            find("database", false, explain(&error));
                        }
                        let (ok, says) = round_trip(&connector).await;
                        find("listener", ok, says);
                    }
                },
            }
        }
    }
    let failed = findings.iter().any(|finding| !finding.ok);
    let mut out = io::stdout();
    if json {
        writeln!(out, "{}", serde_json::to_string(&findings)?)?;
    } else {
        for Finding { check, ok, says } in &findings {
            writeln!(out, "{}  {check:<14} {says}", if *ok { "ok  " } else { "FAIL" })?;
        }
    }
    Ok(u8::from(failed))
}

/// Each key set: does it sign, and do buyers find it where we say they do?
async fn signing(config: &Config, find: &mut impl FnMut(&'static str, bool, String)) {
    let now = SystemTime::now();
    let sets = match read_key_sets(&config.signing) {
        Ok(sets) => sets,
        Err(error) => return find("signing key", false, format!("{error:#}")),
    };
    if let Err(error) = require_signing(&sets, now) {
        find("signing key", false, error.to_string());
    }
    for (scope, source) in config.signing.iter() {
        let Some(ring) = sets.ring(scope) else { continue };
        let whose = scope.map_or(String::new(), |scope| format!("{}: ", scope.as_str()));
        if let Some(key) = ring.signing(now) {
            let algorithm = key.algorithm().as_str();
            find("signing key", true, format!("{whose}signs as {} ({algorithm})", key.kid()));
        }
        let Some(uri) = &source.jwks_uri else { continue };
        match differences(uri, config.http_ca_file.as_deref(), ring, now).await {
            Ok(differences) if differences.is_empty() => {
                find("published keys", true, format!("{whose}buyers find every key at {uri}"));
            }
            Ok(differences) => find(
                "published keys",
                false,
                format!("{whose}{uri}: {}; publish `taskbell keys jwks` there", differences.join(", ")),
            ),
            Err(error) => find("published keys", false, format!("{whose}{uri}: {error:#}")),
        }
    }
}

async fn database(
    client: &mut Client,
    find: &mut impl FnMut(&'static str, bool, String),
) -> Result<(), tokio_postgres::Error> {
    let row = client.query_one(SERVER, &[]).await?;
    let (version, number, role, standby): (String, i32, String, bool) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    find(
        "database",
        number >= OLDEST,
        format!(
            "PostgreSQL {version} as {role}{}",
            if number >= OLDEST { "" } else { "; at least 14 is needed" }
        ),
    );
    find(
        "primary",
        !standby,
        if standby {
            "this is a standby: point database.url at the primary".into()
        } else {
            "writable".into()
        },
    );
    let skew =
        row.get::<_, f64>(4) - SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    find(
        "clock",
        skew.abs() < MAX_SKEW,
        format!(
            "{skew:+.1} s between the database and here{}",
            if skew.abs() < MAX_SKEW {
                ""
            } else {
                "; receivers refuse signatures that are a minute off: repair the time of this machine"
            }
        ),
    );
    let version = migrations::current(client).await?;
    let latest = migrations::LATEST;
    find(
        "schema",
        version == latest,
        if version == latest {
            format!("version {version}")
        } else {
            format!("version {version}, this build needs {latest}: run `taskbell migrate`")
        },
    );
    if version == 0 {
        return Ok(());
    }
    let tables = client.query(super::WATCHED, &[]).await?;
    if tables.is_empty() {
        find("triggers", false, "no table is watched: `taskbell watch add YOUR_TASKS`".to_owned());
    }
    for table in tables {
        let (name, profile): (String, String) = (table.get(1), table.get(2));
        let (expected, enabled): (i32, i32) = (table.get(4), table.get(5));
        let ok = table.get::<_, bool>(0) && enabled == expected;
        find(
            "triggers",
            ok,
            if ok {
                format!("{name} is watched")
            } else {
                format!(
                    "{name} has {enabled} of {expected} triggers: `taskbell watch add {name} --profile {profile}`"
                )
            },
        );
    }
    let queue: f64 = client.query_one("SELECT pg_notification_queue_usage()", &[]).await?.get(0);
    find(
        "notify queue",
        queue < 0.5,
        format!(
            "{:.0} % full{}",
            queue * 100.0,
            if queue < 0.5 {
                ""
            } else {
                "; a session that listens is in a long transaction: end it, or every notifying commit will fail"
            }
        ),
    );
    Ok(())
}

/// Does a notification come back? A pooler in transaction mode swallows it.
async fn round_trip(connector: &Connector) -> (bool, String) {
    let Ok(Session { client, mut messages }) = connector.connect().await else {
        return (false, "no second connection could be made".to_owned());
    };
    let payload = format!("check {}", uuid::Uuid::new_v4());
    let sql = format!("LISTEN {CHANNEL}; NOTIFY {CHANNEL}, '{payload}'");
    let heard = async {
        let sent = client.batch_execute(&sql);
        tokio::pin!(sent);
        let mut done = false;
        loop {
            tokio::select! {
                answer = &mut sent, if !done => { answer.ok()?; done = true; }
                message = messages.next() => match message {
                    Some(Ok(AsyncMessage::Notification(heard))) if heard.payload() == payload => return Some(()),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                },
            }
        }
    };
    match timeout(PATIENCE, heard).await {
        Ok(Some(())) => (true, "a notification came back".to_owned()),
        Ok(None) | Err(_) => (false, "no notification came back: connect past the pooler; until then webhooks wait for the safety poll".to_owned()),
    }
}

const SERVER: &str = "SELECT current_setting('server_version'), current_setting('server_version_num')::int, \
                      current_user::text, pg_is_in_recovery(), extract(epoch FROM clock_timestamp())::float8";
/// CREATE OR REPLACE TRIGGER came with 14.
const OLDEST: i32 = 140_000;
const MAX_SKEW: f64 = 30.0;
const PATIENCE: Duration = Duration::from_secs(3);
