//! When a new process would repair something, and when not: the worker against outboxes that have
//! nothing, that answer with errors, and that never answer.

use std::sync::Arc;
use std::time::Duration;

use taskbell::daemon::pulse::Pulse;
use taskbell::outbox::{Claimed, Entered, Outbox, OutboxError, Room, SettledRows, Settlement, Transition};
use tokio::time::sleep;

use super::support::unwired::Unwired;

#[derive(Clone, Copy)]
enum Answers {
    Nothing,
    Errors,
    Never,
}

impl Outbox for Answers {
    async fn claim(&self, _: &Room) -> Result<Claimed, OutboxError> {
        match self {
            Self::Nothing => Ok(Claimed::default()),
            Self::Errors => {
                sleep(PATIENCE).await;
                Err(OutboxError::Silent)
            }
            Self::Never => std::future::pending().await,
        }
    }

    async fn settle(&self, _: &[Settlement]) -> Result<SettledRows, OutboxError> {
        unreachable!("nothing was claimed")
    }

    async fn before(&self, _: &[Transition]) -> Result<Vec<Option<Entered>>, OutboxError> {
        unreachable!("nothing has changed")
    }

    async fn next_due(&self) -> Result<Option<Duration>, OutboxError> {
        Ok(None)
    }

    async fn expire(&self) -> Result<u64, OutboxError> {
        Ok(0)
    }

    async fn ring(&self) -> Result<(), OutboxError> {
        Ok(())
    }
}

/// A worker with that outbox, for an hour that takes no time. Whether it had a pulse all the while.
async fn beats_for_an_hour(answers: Answers) -> bool {
    let worker = Unwired::start(Arc::new(answers));
    let pulse = Pulse::new(worker.due_back.clone(), PATIENCE * 2);
    let mut beats = true;
    for _ in 0..360 {
        sleep(Duration::from_secs(10)).await;
        beats &= pulse.beats();
    }
    worker.stop().await;
    beats
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_and_one_without_a_database_have_a_pulse_and_a_stuck_one_has_not() {
    assert!(beats_for_an_hour(Answers::Nothing).await);
    assert!(beats_for_an_hour(Answers::Errors).await);
    assert!(!beats_for_an_hour(Answers::Never).await);
}

const PATIENCE: Duration = Duration::from_secs(33);
