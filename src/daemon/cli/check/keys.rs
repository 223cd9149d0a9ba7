//! Keys and certificates, before there is a database: which sign, which seal, and whether buyers
//! find their public halves.

use std::time::SystemTime;

use super::finding::Findings;
use crate::daemon::config::Config;
use crate::daemon::database::tls_config;
use crate::daemon::keys::{read_key_sets, read_sealing_keys, require_signing};
use crate::daemon::published::differences;
use crate::task::SealingKeys;

/// Each key set: does it sign, and do buyers find it where we say they do?
pub(super) async fn signing(config: &Config, found: &mut Findings) {
    let now = SystemTime::now();
    let sets = match read_key_sets(&config.signing) {
        Ok(sets) => sets,
        Err(error) => return found.broken("signing key", format!("{error:#}")),
    };
    if let Err(error) = require_signing(&sets, now) {
        found.broken("signing key", error.to_string());
    }
    for (scope, source) in config.signing.iter() {
        let Some(ring) = sets.ring(scope) else { continue };
        let whose = scope.map_or(String::new(), |scope| format!("{}: ", scope.as_str()));
        if let Some(key) = ring.signing(now) {
            let algorithm = key.algorithm().as_str();
            found.ok("signing key", format!("{whose}signs as {} ({algorithm})", key.kid()));
        }
        let Some(uri) = &source.jwks_uri else {
            let key =
                scope.map_or("signing".to_owned(), |scope| format!("signing.scopes.{}", scope.as_str()));
            let says =
                format!("{whose}{key}.jwks_uri is not set: whether buyers find the keys is not looked at");
            match config.production {
                true => {
                    found.warn("published keys", says, "say there where `taskbell keys jwks` is published")
                }
                false => found.ok("published keys", says),
            }
            continue;
        };
        match differences(uri, config.http_ca_file.as_deref(), ring, now).await {
            Ok(differences) if differences.is_empty() => {
                found.ok("published keys", format!("{whose}buyers find every key at {uri}"));
            }
            Ok(differences) => found.fail(
                "published keys",
                format!("{whose}{uri}: {}", differences.join(", ")),
                "publish `taskbell keys jwks` there",
            ),
            Err(error) => found.fail(
                "published keys",
                format!("{whose}{uri}: {error:#}"),
                "buyers cannot verify what they cannot fetch: publish `taskbell keys jwks` there",
            ),
        }
    }
}

/// The sealing keys, for whoever looks at what they sealed; none where they cannot be read.
pub(super) fn sealing(config: &Config, found: &mut Findings) -> Option<SealingKeys> {
    let keys = match read_sealing_keys(&config.sealing_key_files) {
        Ok(keys) => keys,
        Err(error) => {
            found.broken("sealing key", format!("{error:#}"));
            return None;
        }
    };
    let none = "none: buyers' tokens and credentials stay plain in the database";
    let remedy = "make one with `taskbell keys generate --sealing` and name it in sealing.key_files";
    match keys.current() {
        Some(current) => found.ok("sealing key", format!("seals with {current}")),
        None if config.production => found.fail("sealing key", none, remedy),
        None => found.warn("sealing key", none, remedy),
    }
    Some(keys)
}

/// Whether buyers' certificates can be verified.
pub(super) fn certificates(config: &Config, found: &mut Findings) {
    match tls_config(config.http_ca_file.as_deref()) {
        Ok(_) => found.ok("certificates", "buyers' endpoints can be verified"),
        Err(error) => found.broken("certificates", format!("http.ca_file: {error}")),
    }
}
