//! When a new process would repair something, and when not: the worker against outboxes that have
//! nothing, that answer with errors, and that never answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use taskbell::daemon::database::tls_config;
use taskbell::daemon::pulse::Pulse;
use taskbell::listener::{Doorbell, wakes};
use taskbell::metrics::TaskTypes;
use taskbell::outbox::{Claimed, Entered, Outbox, OutboxError, Room, SettledRows, Settlement, Transition};
use taskbell::webhook::{GuardPolicy, LegacyModes, Sender, SenderOptions, Signer};
use taskbell::worker::{RetryPolicy, Worker, WorkerSettings, World};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::TestDatabase;
use crate::support::daemon::ring;

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

struct Still;

impl World for Still {
    fn chance(&self) -> f64 {
        0.5
    }
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
}

/// A worker with that outbox, for an hour that takes no time. Whether it had a pulse all the while.
async fn beats_for_an_hour(answers: Answers) -> bool {
    let nowhere = TestDatabase::at("host=/nowhere user=nobody");
    let sender = Sender::new(tls_config(None).unwrap(), GuardPolicy::default(), &SenderOptions::default());
    let (ringer, wakes) = wakes();
    let stop = CancellationToken::new();
    let (doorbell, porter) = Doorbell::new(nowhere.connector.handle(), stop.clone());
    let porter = tokio::spawn(porter);
    let worker = Worker::new(
        Arc::new(answers),
        Arc::new(Still),
        sender.unwrap(),
        Arc::new(Signer::new(ring("k"), LegacyModes::default())),
        doorbell,
        wakes,
        WorkerSettings {
            concurrency: 4,
            per_lane: 4,
            payload: 8 << 20,
            linger: Duration::from_millis(20),
            yield_for: Duration::ZERO,
            safety_poll: Duration::from_secs(600),
            grace: Duration::from_secs(5),
            deadline: Duration::from_secs(5),
            retry: RetryPolicy::default(),
            task_types: TaskTypes::new([]),
        },
    );
    let pulse = Pulse::new(worker.due_back(), PATIENCE * 2);
    let working = tokio::spawn(worker.run(stop.clone()));
    let mut beats = true;
    for _ in 0..360 {
        sleep(Duration::from_secs(10)).await;
        beats &= pulse.beats();
    }
    drop(ringer);
    stop.cancel();
    working.await.unwrap();
    porter.await.unwrap();
    beats
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_and_one_without_a_database_have_a_pulse_and_a_stuck_one_has_not() {
    taskbell::daemon::telemetry::install_crypto();
    assert!(beats_for_an_hour(Answers::Nothing).await);
    assert!(beats_for_an_hour(Answers::Errors).await);
    assert!(!beats_for_an_hour(Answers::Never).await);
}

const PATIENCE: Duration = Duration::from_secs(33);
