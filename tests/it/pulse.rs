//! When a new process would repair something, and when not: the worker against outboxes that have
//! nothing, that answer with errors, and that never answer.

use std::sync::Arc;
use std::time::Duration;

use taskbell::daemon::pulse::Pulse;
use taskbell::outbox::{Claimed, OutboxError, Room};
use tokio::time::sleep;

use super::support::unwired::{Fake, Unwired};

#[derive(Clone, Copy)]
enum Answers {
    Nothing,
    Errors,
    Never,
}

impl Fake for Answers {
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
