//! Seals registrations that writers without a key left plain, soon after they were written.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Pool;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::outbox::native::{Which, seal_registrations};
use crate::outbox::patiently;
use crate::task::SealingKeys;

/// Runs until `stop` is cancelled. Several daemons may: each row is locked by one of them.
pub(super) async fn run(pool: Pool, keys: Arc<SealingKeys>, patience: Duration, stop: CancellationToken) {
    let mut beat = interval(EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        let sealed = tokio::select! {
            () = stop.cancelled() => return,
            sealed = patiently(patience * 2, seal_registrations(&pool, &keys, Which::Plain)) => sealed,
        };
        match sealed.and_then(|sealed| sealed) {
            Ok(done) if done.rows > 0 => tracing::debug!(rows = done.rows, "registrations sealed"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "plain registrations were not sealed"),
        }
    }
}

/// A partial index that is nearly always empty answers the question.
const EVERY: Duration = Duration::from_secs(5);
