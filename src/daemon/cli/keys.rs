//! `keys generate`, `keys rotate`, `keys jwks`, `keys reseal`.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail};
use clap::Subcommand;
use secrecy::{ExposeSecret, SecretString};

use crate::daemon::config::{Config, Sources};
use crate::daemon::database::Connector;
use crate::daemon::keys::{read_key_sets, read_ring, read_sealing_keys};
use crate::outbox::native::{Which, seal_registrations};
use crate::task::{SealingKey, SigningScope};
use crate::webhook::{SigningAlgorithm, SigningKey};

#[derive(Debug, Subcommand)]
pub(super) enum Keys {
    /// Makes a new key and writes it to a file that only you can read.
    Generate {
        /// Where to write it; refused if it exists.
        file: PathBuf,
        /// The key id; one derived from the key if absent.
        #[arg(long)]
        kid: Option<String>,
        /// ed25519 or ecdsa-p256-sha256.
        #[arg(long, default_value = "ed25519", conflicts_with = "sealing")]
        algorithm: SigningAlgorithm,
        /// What it is published for: request-signing, or webhook-signing for buyers whose SDK
        /// accepts only that.
        #[arg(long, default_value = "request-signing", conflicts_with = "sealing")]
        adcp_use: String,
        /// A key that seals registrations at rest, for sealing.key_files.
        #[arg(long)]
        sealing: bool,
    },
    /// Adds a new signing key to a key file: published now, signing later, the old one kept
    /// until its last signature has expired. Running daemons follow.
    Rotate {
        /// The key file; it becomes a key set.
        file: PathBuf,
        /// How long the new key is published before it signs. Buyers cache for half an hour.
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        lead: Duration,
        /// How long the old key stays published after its last signature.
        #[arg(long, default_value = "15m", value_parser = humantime::parse_duration)]
        overlap: Duration,
    },
    /// Prints the public keys as the JWKS document that buyers fetch.
    Jwks {
        /// Private key files; those of the configuration if absent.
        files: Vec<PathBuf>,
        /// The signing scope whose keys are meant; the default ones if absent.
        #[arg(long, conflicts_with = "files")]
        scope: Option<String>,
    },
    /// Seals every registration with the first key of sealing.key_files, so that older keys can
    /// be taken away.
    Reseal,
}

impl Keys {
    pub(super) async fn run(self, sources: &Sources) -> anyhow::Result<()> {
        match self {
            Self::Generate { file, kid, sealing: true, .. } => {
                let key = SealingKey::generate(kid.as_deref())?;
                write_new(&file, &key)?;
                let id = SealingKey::parse(key.expose_secret())?.id().to_owned();
                eprintln!(
                    "wrote the sealing key `{id}` to {}: keep a copy where the database's backups are not",
                    file.display()
                );
            }
            Self::Generate { file, kid, algorithm, adcp_use, .. } => {
                let key = SigningKey::generate(algorithm, kid.as_deref())?.for_purpose(&adcp_use)?;
                write_new(&file, &key.to_private_jwk()?)?;
                eprintln!("wrote the private key to {}; this is the public one:", file.display());
                println!("{:#}", key.to_public_jwk());
            }
            Self::Rotate { file, lead, overlap } => rotate(&file, lead, overlap)?,
            Self::Jwks { files, scope } => {
                let now = SystemTime::now();
                let jwks = match files.as_slice() {
                    [] => {
                        let scope = scope.as_deref().map(SigningScope::parse).transpose()?;
                        let sets = read_key_sets(&Config::load(sources)?.signing)?;
                        let ring = sets.ring(scope.as_ref());
                        ring.ok_or_else(|| anyhow!("--scope: no such section under signing.scopes"))?
                            .jwks(now)
                    }
                    files => read_ring(files)?.jwks(now),
                };
                println!("{jwks:#}");
            }
            Self::Reseal => reseal(&Config::load(sources)?).await?,
        }
        Ok(())
    }
}

fn write_new(file: &Path, secret: &SecretString) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let mut out = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("{} cannot be written", file.display()))?;
    out.write_all(secret.expose_secret().as_bytes())?;
    Ok(out.sync_all()?)
}

fn rotate(file: &Path, lead: Duration, overlap: Duration) -> anyhow::Result<()> {
    // A signature lives for five minutes, and receivers forgive one of clock.
    if overlap < MIN_OVERLAP {
        bail!("--overlap: must be at least 6m, the life of a signature");
    }
    let (ring, kid) = read_ring(&[file.to_owned()])?.rotate(SystemTime::now(), lead, overlap)?;
    // Beside it and then in its place: a daemon that reads now finds the old file or the new one.
    let owner = std::fs::metadata(file)?;
    let new = file.with_extension(format!("rotate-{}", std::process::id()));
    write_new(&new, &ring.to_private_jwks()?)?;
    let placed = std::fs::File::open(&new)
        .and_then(|opened| {
            opened.set_permissions(owner.permissions())?;
            fchown(&opened, Some(owner.uid()), Some(owner.gid()))
        })
        .and_then(|()| std::fs::rename(&new, file));
    if let Err(error) = placed {
        let _ = std::fs::remove_file(&new);
        return Err(error).with_context(|| format!("{} cannot be replaced", file.display()));
    }
    println!(
        "`{kid}` is published now and signs in {}; publish `taskbell keys jwks` again if buyers fetch it elsewhere",
        humantime::format_duration(lead)
    );
    Ok(())
}

async fn reseal(config: &Config) -> anyhow::Result<()> {
    let keys = read_sealing_keys(&config.sealing_key_files)?;
    let Some(current) = keys.current() else {
        bail!("sealing.key_files: no key; make one with `taskbell keys generate --sealing FILE`");
    };
    let pool = Connector::new(&config.database)?.durable().pool()?;
    let done = seal_registrations(&pool, &keys, Which::PlainAndOldKeys).await?;
    println!("{} registrations sealed with `{current}`", done.rows);
    if done.unopenable > 0 {
        bail!(
            "{} registrations do not open with any key of sealing.key_files and were left as they are",
            done.unopenable
        );
    }
    Ok(())
}

/// The life of a signature and the clock difference that receivers forgive.
const MIN_OVERLAP: Duration = Duration::from_secs(360);
