//! Compares our keys with the JWKS that buyers fetch.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use serde_json::Value;

use super::database::tls_config;
use crate::webhook::KeyRing;

/// Fetches the document at `uri` and says where it differs from what `ring` must publish at
/// `now`; nothing when it does not.
///
/// # Errors
/// It cannot be fetched, or is no JWKS.
pub async fn differences(
    uri: &str,
    ca_file: Option<&Path>,
    ring: &KeyRing,
    now: SystemTime,
) -> anyhow::Result<Vec<String>> {
    let published = fetch(uri, ca_file).await?;
    Ok(compare(&published, &ring.jwks(now)))
}

async fn fetch(uri: &str, ca_file: Option<&Path>) -> anyhow::Result<Value> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls_config(ca_file)?)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()?;
    let mut answer = client.get(uri).send().await.map_err(reqwest::Error::without_url)?;
    if answer.status() != reqwest::StatusCode::OK {
        bail!("it answers {}", answer.status().as_u16());
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BYTES {
            bail!("it is larger than 64 KiB");
        }
    }
    serde_json::from_slice(&body).context("it is not JSON")
}

/// What buyers need of ours and do not find.
fn compare(published: &Value, ours: &Value) -> Vec<String> {
    let keys = |document: &Value| document["keys"].as_array().cloned().unwrap_or_default();
    let (published, ours) = (keys(published), keys(ours));
    let mut differences = Vec::new();
    for key in &ours {
        let kid = key["kid"].as_str().unwrap_or_default();
        let found: Vec<&Value> = published.iter().filter(|other| other["kid"] == key["kid"]).collect();
        match found.as_slice() {
            [] => differences.push(format!("`{kid}` is not published")),
            [other] => differences.extend(
                COMPARED
                    .iter()
                    .filter(|member| other[**member] != key[**member])
                    .map(|member| format!("`{kid}` has another {member}")),
            ),
            _ => differences.push(format!("`{kid}` is published {} times", found.len())),
        }
    }
    if published.iter().any(|key| key.get("d").is_some() || key.get("k").is_some()) {
        differences.push("it shows a private key: withdraw it at once and rotate".to_owned());
    }
    differences
}

/// Members that receivers judge by. `adcp_use` is not among them: two values are accepted.
const COMPARED: [&str; 7] = ["kty", "crv", "x", "y", "alg", "use", "key_ops"];
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_difference_that_a_receiver_would_see_is_named() {
        let ours = json!({"keys": [{"kid": "a", "kty": "OKP", "x": "1", "key_ops": ["verify"]}]});
        assert!(compare(&ours, &ours).is_empty());
        for (published, expected) in [
            (json!({"keys": []}), "`a` is not published"),
            (json!({}), "`a` is not published"),
            (
                json!({"keys": [{"kid": "a", "kty": "OKP", "x": "2", "key_ops": ["verify"]}]}),
                "`a` has another x",
            ),
            (json!({"keys": [{"kid": "a", "kty": "OKP", "x": "1"}]}), "`a` has another key_ops"),
            (json!({"keys": [ours["keys"][0], ours["keys"][0]]}), "`a` is published 2 times"),
        ] {
            assert_eq!(compare(&published, &ours), [expected]);
        }
        let mut leaking = ours.clone();
        leaking["keys"][0]["d"] = "secret".into();
        assert!(compare(&leaking, &ours)[0].contains("private"));
    }
}
