//! What a service manager hears of us (systemd's sd_notify(3)): ready, how it goes, stopping, and,
//! if it keeps a watchdog, that the worker moves. Without `NOTIFY_SOCKET` nobody hears anything.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::pulse::Pulse;

/// What is reported.
pub(super) struct Manager {
    /// Whether the LISTEN connection is up.
    pub listener_up: watch::Receiver<bool>,
    /// Whether the outbox can be read and written.
    pub outbox_up: watch::Receiver<bool>,
    /// Whether the worker moves.
    pub pulse: Pulse,
    /// How long a stop waits for attempts in flight.
    pub grace: Duration,
}

impl Manager {
    /// Reports until `ended` is cancelled; `stop` begins the drain.
    pub(super) async fn report(self, stop: CancellationToken, ended: CancellationToken) {
        let watchdog = keep_watchdog(self.pulse.clone());
        let follow = async {
            // A drain with nothing in flight is over at once; its beginning is told all the same.
            self.follow(&stop, &ended).await;
            ended.cancelled().await;
        };
        tokio::select! {
            () = watchdog => {}
            () = follow => {}
        }
    }

    /// Says how it goes until we stop, and then that we stop.
    async fn follow(mut self, stop: &CancellationToken, ended: &CancellationToken) {
        let (mut ready, mut told) = (false, None);
        loop {
            let up = *self.listener_up.borrow_and_update() && *self.outbox_up.borrow_and_update();
            if told.replace(up) != Some(up) {
                tell(&[NotifyState::Status(if up { RUNS } else { WAITS })]);
            }
            if up && !ready {
                ready = true;
                tell(&[NotifyState::Ready]);
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = ended.cancelled() => break,
                Ok(()) = self.listener_up.changed() => {}
                Ok(()) = self.outbox_up.changed() => {}
            }
        }
        let time = u32::try_from((self.grace + AFTER_GRACE).as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::Stopping, NotifyState::Status(STOPS), NotifyState::ExtendTimeoutUsec(time)]);
    }
}

/// Beats as long as the worker does. Never returns.
async fn keep_watchdog(pulse: Pulse) {
    let Some(period) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    // Never zero, which an interval refuses.
    let mut beats = interval((period / BEATS).max(Duration::from_millis(1)));
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut moves = true;
    loop {
        beats.tick().await;
        let moved = std::mem::replace(&mut moves, pulse.beats());
        if moves {
            tell(&[NotifyState::Watchdog]);
        } else if moved {
            tracing::error!("the worker is stuck: the service manager's watchdog is left to run out");
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

const RUNS: &str = "listening and delivering";
const WAITS: &str = "waiting for the database";
const STOPS: &str = "stopping: attempts in flight are finished, the rest is given back";
/// Beats in a period of the watchdog; sd_watchdog_enabled(3) wants at least two.
const BEATS: u32 = 3;
/// For giving back what is still in flight when the grace is over, and for the last connections.
const AFTER_GRACE: Duration = Duration::from_secs(15);
