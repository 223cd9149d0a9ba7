//! `keys generate`, `keys jwks`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use secrecy::ExposeSecret;

use crate::daemon::config::{Config, Sources};
use crate::daemon::run::read_keys;
use crate::webhook::{SigningAlgorithm, SigningKey};

#[derive(Debug, Subcommand)]
pub(super) enum Keys {
    /// Makes a new Ed25519 key and writes its private JWK to a file that only you can read.
    Generate {
        /// Where to write it; refused if it exists.
        file: PathBuf,
        /// The key id; a random one if absent.
        #[arg(long)]
        kid: Option<String>,
    },
    /// Prints the public keys as the JWKS document that buyers fetch.
    Jwks {
        /// Private key files; those of the configuration if absent.
        files: Vec<PathBuf>,
    },
}

impl Keys {
    pub(super) fn run(self, sources: &Sources) -> anyhow::Result<()> {
        match self {
            Self::Generate { file, kid } => {
                let kid = kid.unwrap_or_else(|| format!("taskbell-{}", uuid::Uuid::new_v4().simple()));
                let key = SigningKey::generate(SigningAlgorithm::Ed25519, Some(&kid))?;
                let private = key.to_private_jwk()?;
                let mut out = std::fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&file)
                    .with_context(|| format!("{} cannot be written", file.display()))?;
                out.write_all(private.expose_secret().as_bytes())?;
                eprintln!("wrote the private key to {}; this is the public one:", file.display());
                println!("{:#}", key.to_public_jwk());
            }
            Self::Jwks { files } => {
                let files = if files.is_empty() { Config::load(sources)?.key_files } else { files };
                println!("{:#}", read_keys(&files)?.jwks());
            }
        }
        Ok(())
    }
}
