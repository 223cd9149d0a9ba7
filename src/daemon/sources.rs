//! The outboxes that this daemon serves, as the configuration names them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use deadpool_postgres::Pool;

use super::config::{Config, SealedSource};
use super::keys::read_sdk_keys;
use crate::outbox::{NativeOptions, NativeOutbox, Outboxes, SealedOptions, SealedOutbox};
use crate::task::{SealingKeys, UrlSchemes};

/// Both outboxes, and how often to look at them although nobody rang.
///
/// # Errors
/// A key cannot be read, or the SDK's table is not there or not complete.
pub async fn outboxes(
    config: &Config,
    pool: &Pool,
    sealing: Arc<SealingKeys>,
) -> anyhow::Result<(Outboxes, Duration)> {
    let schemes = if config.guard.allow_http { UrlSchemes::AllowHttp } else { UrlSchemes::HttpsOnly };
    let (lease, patience) = (config.lease, config.database.patience());
    let options = NativeOptions {
        lease,
        patience,
        horizon: config.horizon,
        schemes,
        sealing,
        circuits: config.circuits,
    };
    let native = NativeOutbox::new(pool.clone(), options);
    let Some(source) = &config.sealed else { return Ok((Outboxes::new(native, None), config.safety_poll)) };
    let keys = Arc::new(read_sdk_keys(&source.key_files)?);
    let rings = rings_our_bell(pool, source).await?;
    let options = SealedOptions { table: source.table.clone(), lease, patience, schemes, keys };
    let sealed = SealedOutbox::new(pool.clone(), options);
    let poll = if rings { config.safety_poll } else { config.safety_poll.min(source.poll) };
    Ok((Outboxes::new(native, Some(sealed)), poll))
}

/// Whether the SDK's table carries our trigger; it must have every column that we use.
///
/// # Errors
/// What it lacks.
pub(super) async fn rings_our_bell(pool: &Pool, source: &SealedSource) -> anyhow::Result<bool> {
    let client = pool.get().await?;
    let row = client.query_opt(COLUMNS, &[&source.table]).await.context("sources.sealed.table")?;
    let Some(row) = row else {
        bail!("sources.sealed.table: there is no table {}; the SDK's create_schema makes it", source.table);
    };
    if let Some(missing) = row.get::<_, Option<String>>(0) {
        bail!(
            "sources.sealed.table: {} has no column {missing}; run the SDK's create_schema of 9.2.0 or later",
            source.table
        );
    }
    Ok(row.get(1))
}

pub(super) const COLUMNS: &str = include_str!("sealed_columns.sql");
