//! A worker without a database, on whatever outbox a test makes up.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use taskbell::daemon::database::tls_config;
use taskbell::listener::{Connect, Doorbell, Ringer, wakes};
use taskbell::metrics::TaskTypes;
use taskbell::outbox::{
    Claim, Claimed, Entered, Lane, LeaseToken, Outbox, OutboxError, Room, RowId, SettledRows, Settlement,
    Transition,
};
use taskbell::task::{CallbackUrl, UrlSchemes};
use taskbell::webhook::{GuardPolicy, LegacyModes, Outcome, Prepared, Sender, SenderOptions, Signer};
use taskbell::worker::{RetryPolicy, Worker, WorkerSettings, World};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::TestDatabase;
use super::daemon::ring;
use super::properties::prepared;

/// An outbox that a test makes up: nothing happens in it besides what it says.
pub trait Fake: Send + Sync + 'static {
    fn claim(&self, room: &Room) -> impl Future<Output = Result<Claimed, OutboxError>> + Send;

    fn settle(&self, _: &[Settlement]) -> impl Future<Output = Result<SettledRows, OutboxError>> + Send {
        async { unreachable!("nothing was claimed") }
    }

    fn before(
        &self,
        _: &[Transition],
    ) -> impl Future<Output = Result<Vec<Option<Entered>>, OutboxError>> + Send {
        async { unreachable!("nothing has changed") }
    }

    fn next_due(&self) -> impl Future<Output = Result<Option<Duration>, OutboxError>> + Send {
        async { Ok(None) }
    }
}

/// A first attempt at a row.
pub fn claim(row: usize, lane: &str, prepared: Result<Prepared, Outcome>) -> Claim {
    Claim {
        row: RowId::native(row.try_into().unwrap()),
        lease: LeaseToken(Uuid::new_v4()),
        until: Instant::now() + Duration::from_secs(60),
        task_id: format!("task_{row}"),
        task_type: "create_media_buy".to_owned(),
        lane: Lane(lane.to_owned()),
        attempt: 1,
        since_first: Duration::ZERO,
        horizon: Duration::from_secs(86_400),
        owed_for: Duration::ZERO,
        is_new: true,
        prepared,
    }
}

/// One that ends at once: the guard refuses where it goes.
pub fn refused(row: usize, lane: &str) -> Claim {
    let url = CallbackUrl::parse("https://127.0.0.1:1/", UrlSchemes::HttpsOnly).unwrap();
    claim(row, lane, Ok(prepared(url)))
}

struct Faked<F>(Arc<F>);

impl<F: Fake> Outbox for Faked<F> {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        self.0.claim(room).await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<SettledRows, OutboxError> {
        self.0.settle(settlements).await
    }

    async fn before(&self, changes: &[Transition]) -> Result<Vec<Option<Entered>>, OutboxError> {
        self.0.before(changes).await
    }

    async fn next_due(&self) -> Result<Option<Duration>, OutboxError> {
        self.0.next_due().await
    }

    async fn expire(&self) -> Result<u64, OutboxError> {
        Ok(0)
    }

    async fn ring(&self) -> Result<(), OutboxError> {
        Ok(())
    }
}

pub struct Unwired {
    pub ringer: Ringer,
    pub due_back: watch::Receiver<Instant>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
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

impl Unwired {
    pub fn start<F: Fake>(outbox: Arc<F>) -> Self {
        Self::that_yields_for(Duration::ZERO, outbox)
    }

    /// The same, but it leaves the database to sellers for so long.
    pub fn that_yields_for<F: Fake>(yield_for: Duration, outbox: Arc<F>) -> Self {
        Self::begin(TestDatabase::at("host=/nowhere user=nobody").connector.handle(), outbox, yield_for)
    }

    /// With a database for the doorbell alone: without one it is always awake.
    pub fn with_the_doorbell_of<F: Fake>(database: &TestDatabase, outbox: Arc<F>) -> Self {
        Self::with_a_doorbell(database.connector.handle(), outbox)
    }

    pub fn with_a_doorbell<F: Fake>(connect: Connect, outbox: Arc<F>) -> Self {
        Self::begin(connect, outbox, Duration::ZERO)
    }

    fn begin<F: Fake>(connect: Connect, outbox: Arc<F>, yield_for: Duration) -> Self {
        taskbell::daemon::telemetry::install_crypto();
        let sender =
            Sender::new(tls_config(None).unwrap(), GuardPolicy::default(), &SenderOptions::default());
        let (ringer, wakes) = wakes();
        let stop = CancellationToken::new();
        let (doorbell, porter) = Doorbell::new(connect, stop.clone());
        let signer = Arc::new(Signer::new(ring("k"), LegacyModes::default()));
        let settings = WorkerSettings {
            concurrency: 16,
            per_lane: 4,
            payload: 8 << 20,
            linger: Duration::from_millis(20),
            yield_for,
            safety_poll: Duration::from_secs(600),
            grace: Duration::from_secs(5),
            deadline: Duration::from_secs(5),
            retry: RetryPolicy::default(),
            task_types: TaskTypes::new([]),
        };
        let (outbox, world) = (Arc::new(Faked(outbox)), Arc::new(Still));
        let worker = Worker::new(outbox, world, sender.unwrap(), signer, doorbell, wakes, settings);
        let due_back = worker.due_back();
        let tasks = vec![tokio::spawn(porter), tokio::spawn(worker.run(stop.clone()))];
        Self { ringer, due_back, stop, tasks }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}
