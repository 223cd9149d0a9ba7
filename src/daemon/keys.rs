//! Key files become key sets, at the start and whenever they change.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::config::Signing;
use crate::task::{SdkKeys, SealingKey, SealingKeys, SigningScope};
use crate::webhook::{KeyRing, KeySets, Signer};

/// Reads every configured key set.
///
/// # Errors
/// A file cannot be read or holds no usable key; the message names it.
pub fn read_key_sets(signing: &Signing) -> anyhow::Result<KeySets> {
    let scopes = signing.scopes.iter().map(|(scope, source)| {
        let ring =
            read_ring(&source.key_files).with_context(|| format!("signing scope {}", scope.as_str()))?;
        anyhow::Ok((scope.clone(), ring))
    });
    let scopes = scopes.collect::<anyhow::Result<BTreeMap<SigningScope, KeyRing>>>()?;
    Ok(KeySets::new(read_ring(&signing.default.key_files)?, scopes))
}

/// Reads the files of one key set.
///
/// # Errors
/// As [`read_key_sets`].
pub fn read_ring(files: &[PathBuf]) -> anyhow::Result<KeyRing> {
    files.iter().try_fold(KeyRing::default(), |ring, file| {
        let text = read(file).with_context(|| "signing.key_files")?;
        let keys = KeyRing::parse(&text).with_context(|| format!("signing.key_files: {}", file.display()))?;
        Ok(ring.join(keys)?)
    })
}

/// Reads the sealing keys.
///
/// # Errors
/// As [`read_key_sets`].
pub fn read_sealing_keys(files: &[PathBuf]) -> anyhow::Result<SealingKeys> {
    let keys = files.iter().map(|file| {
        let text = read(file).with_context(|| "sealing.key_files")?;
        SealingKey::parse(&text).with_context(|| format!("sealing.key_files: {}", file.display()))
    });
    Ok(SealingKeys::new(keys.collect::<anyhow::Result<_>>()?)?)
}

/// Reads the application keys of the AdCP Python SDK.
///
/// # Errors
/// As [`read_key_sets`].
pub fn read_sdk_keys(files: &[PathBuf]) -> anyhow::Result<SdkKeys> {
    let texts = files.iter().map(|file| {
        let bytes = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        Ok(Zeroizing::new(bytes))
    });
    let texts = texts.collect::<anyhow::Result<Vec<_>>>().context("sources.sealed.key_files")?;
    SdkKeys::parse(texts.iter().map(|text| text.as_slice())).context("sources.sealed.key_files")
}

fn read(file: &std::path::Path) -> anyhow::Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(Zeroizing::new(text))
}

/// Checks that every key set has a key that signs now. An empty default one is fine where there
/// are scopes.
///
/// # Errors
/// Which has none, and what to do.
pub fn require_signing(sets: &KeySets, now: SystemTime) -> anyhow::Result<()> {
    for (scope, ring) in sets.iter() {
        let unused = scope.is_none() && ring.iter().next().is_none() && sets.iter().count() > 1;
        if ring.signing(now).is_none() && !unused {
            let whose = scope.map_or("signing.key_files".to_owned(), |scope| {
                format!("signing.scopes.{}.key_files", scope.as_str())
            });
            bail!("{whose}: no key signs now; make one with `taskbell keys generate`");
        }
    }
    Ok(())
}

/// Reads the files again every so often and hands changed keys to the signer, so that a rotation
/// needs no restart. Files that cannot be used change nothing: the keys in memory go on.
pub async fn follow(signing: Signing, signer: Arc<Signer>, stop: CancellationToken) {
    let mut beat = interval(EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complained = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        let signing = signing.clone();
        let read = tokio::task::spawn_blocking(move || read_key_sets(&signing)).await;
        match read.map_err(anyhow::Error::from).and_then(|sets| sets) {
            Ok(sets) => {
                complained = false;
                if sets != *signer.keys() {
                    tracing::info!("the signing keys have changed and are in use");
                    signer.replace_keys(sets);
                }
            }
            Err(error) if !complained => {
                tracing::error!(error = %format!("{error:#}"), "the signing keys cannot be read again; the old ones stay in use");
                complained = true;
            }
            Err(_) => {}
        }
    }
}

/// A rotation gives an hour; this much of it may be lost.
const EVERY: Duration = Duration::from_secs(5);
