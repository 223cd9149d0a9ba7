//! Keeps house on a timer: has the gauges refreshed that read the database, expires rows past
//! their horizon, creates tomorrow's partitions, drops old ones, and circuits of lanes that owe nothing.
//!
//! Off-scrape, so that a scrape never waits for a query.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Pool;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::database::explain;
use super::gauges::Desk;
use crate::metrics as names;
use crate::outbox::{Loan, Outbox, Outboxes, patiently};

/// The reporter.
pub struct Reporter {
    /// Where the gauges are refreshed.
    pub desk: Desk,
    /// Where to keep house.
    pub pool: Pool,
    /// How long an answer is waited for.
    pub patience: Duration,
    /// Whose rows expire.
    pub outbox: Arc<Outboxes>,
    /// How often.
    pub refresh: Duration,
    /// How long the journal is kept.
    pub keep: Duration,
}

impl Reporter {
    /// Runs until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut beat = interval(self.refresh);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beats: u32 = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = beat.tick() => {}
            }
            tokio::select! {
                // Half a report does no harm, and its connection is closed.
                () = stop.cancelled() => return,
                () = self.beat(beats) => {}
            }
            beats = beats.wrapping_add(1);
        }
    }

    async fn beat(&mut self, beats: u32) {
        // Claims pass such rows over by themselves; this only gives them their name.
        if beats.is_multiple_of(EXPIRE_BEATS)
            && let Err(error) = self.expire().await
        {
            tracing::warn!(%error, "rows past their horizon were not expired");
        }
        if let Err(error) = self.desk.refresh().await {
            tracing::warn!(%error, "gauges were not refreshed");
        }
        // Once an hour or so, and at the start.
        if beats.is_multiple_of(HOUSEKEEPING_BEATS)
            && let Err(error) = self.keep_house().await
        {
            tracing::warn!(%error, "partitions and circuits were not maintained");
        }
    }

    async fn expire(&self) -> Result<(), String> {
        let began = Instant::now();
        while began.elapsed() < EXPIRE_FOR {
            let expired = self.outbox.expire().await.map_err(|error| error.to_string())?;
            if expired == 0 {
                break;
            }
            names::observe_expired(expired);
            tracing::warn!(rows = expired, "webhooks expired: every attempt inside their horizon failed");
        }
        Ok(())
    }

    async fn keep_house(&self) -> Result<(), String> {
        let client = Loan::of(&self.pool).await.map_err(|error| error.to_string())?;
        let keep = self.keep.as_secs_f64();
        let dropped = patiently(self.patience * 2, async {
            client.query_one(CREATE_PARTITIONS, &[]).await?;
            let partitions: i32 = client.query_one(DROP_PARTITIONS, &[&keep]).await?.get(0);
            Ok((partitions, client.execute(DROP_IDLE_CIRCUITS, &[]).await?))
        });
        let (partitions, circuits) = dropped
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error: tokio_postgres::Error| explain(&error))?;
        client.give_back();
        tracing::debug!(partitions, circuits, "dropped what is no longer needed");
        Ok(())
    }
}

const CREATE_PARTITIONS: &str = "SELECT taskbell.create_partitions()";
const DROP_PARTITIONS: &str = "SELECT taskbell.drop_partitions($1 * interval '1 second')";
const DROP_IDLE_CIRCUITS: &str = include_str!("idle_circuits.sql");
/// At the default beat of 15 s, a minute: it reads every row that is owed.
const EXPIRE_BEATS: u32 = 4;
/// The gauges wait meanwhile. What is left has its turn a minute later: nobody claims it.
const EXPIRE_FOR: Duration = Duration::from_secs(5);
/// At the default beat of 15 s, an hour.
const HOUSEKEEPING_BEATS: u32 = 240;
