//! The daemon's parts without its edge, in the test's own process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use taskbell::daemon::database::tls_config;
use taskbell::listener::{Doorbell, Listener};
use taskbell::metrics::TaskTypes;
use taskbell::outbox::{CircuitPolicy, NativeOptions, NativeOutbox, Outboxes, SealedOutbox};
use taskbell::task::{SealingKeys, UrlSchemes};
use taskbell::webhook::verify::{Arrived, ReplayWindow, Revocation, Verifier, VerifyingKeys};
use taskbell::webhook::{
    GuardPolicy, KeyRing, KeySets, LegacyModes, Sender, SenderOptions, Signer, SigningAlgorithm, SigningKey,
};
use taskbell::worker::{RetryPolicy, Worker, WorkerSettings, World};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::receiver::{Post, Receiver};
use super::{TestDatabase, eventually};

/// A running daemon.
pub struct Daemon {
    /// The keys under which it publishes.
    pub signer: Arc<Signer>,
    stop: CancellationToken,
    services: CancellationToken,
    tasks: TaskTracker,
    worker: tokio::task::JoinHandle<()>,
}

/// What a test may want otherwise.
pub struct Tuning {
    pub worker: WorkerSettings,
    pub sealing: Arc<SealingKeys>,
    pub keys: KeySets,
    pub legacy: LegacyModes,
    pub circuits: CircuitPolicy,
    pub sealed: Option<SealedOutbox>,
}

struct TestWorld;

impl World for TestWorld {
    fn chance(&self) -> f64 {
        0.5
    }
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

impl Daemon {
    pub async fn start(database: &TestDatabase, receiver: &Receiver, tune: impl FnOnce(&mut Tuning)) -> Self {
        let mut tuning = Tuning {
            worker: WorkerSettings {
                concurrency: 16,
                per_lane: 8,
                payload: 8 << 20,
                linger: Duration::from_millis(20),
                yield_for: Duration::from_secs(15),
                safety_poll: Duration::from_secs(30),
                grace: Duration::from_secs(5),
                deadline: Duration::from_secs(1),
                retry: RetryPolicy { schedule: vec![Duration::from_millis(50)], jitter: 0.0 },
                task_types: TaskTypes::new([]),
            },
            sealing: Arc::default(),
            keys: ring("test-key").into(),
            legacy: LegacyModes { bearer: true, hmac: false },
            circuits: NEVER,
            sealed: None,
        };
        tune(&mut tuning);
        let sender = Sender::new(
            tls_config(Some(receiver.ca_file.path())).unwrap(),
            GuardPolicy { allow_private: true, ..GuardPolicy::default() },
            &SenderOptions::default(),
        )
        .unwrap();
        let signer = Arc::new(Signer::new(tuning.keys, tuning.legacy));
        let (stop, services, tasks) =
            (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let handle = database.connector.handle();
        let (listener, wakes, _) = Listener::new(handle.clone(), Duration::from_secs(10));
        tasks.spawn(listener.run(services.clone()));
        let (doorbell, porter) = Doorbell::new(handle, services.clone());
        tasks.spawn(porter);
        let native = outbox_with(database, tuning.sealing, tuning.circuits);
        let outbox = Arc::new(Outboxes::new(native, tuning.sealed));
        let worker =
            Worker::new(outbox, Arc::new(TestWorld), sender, signer.clone(), doorbell, wakes, tuning.worker);
        let worker = tokio::spawn(worker.run(stop.clone()));
        Self { signer, stop, services, tasks, worker }
    }

    /// Verifies a webhook as a buyer who fetches the default keys. Gives the `kid`.
    pub fn verify(&self, post: &Post, url: &str) -> Result<String, String> {
        verify(post, url, &self.signer.keys().ring(None).unwrap().jwks(SystemTime::now()))
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.worker.await.unwrap();
        self.services.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// A key set with one new key.
pub fn ring(kid: &str) -> KeyRing {
    KeyRing::new(vec![SigningKey::generate(SigningAlgorithm::Ed25519, Some(kid)).unwrap()]).unwrap()
}

/// No test but those of lanes is about circuits.
const NEVER: CircuitPolicy = CircuitPolicy {
    failures: u32::MAX / 2,
    pause: Duration::from_secs(1),
    max_pause: Duration::from_secs(1),
};

pub fn outbox(database: &TestDatabase, sealing: Arc<SealingKeys>) -> NativeOutbox {
    outbox_with(database, sealing, NEVER)
}

pub fn outbox_with(
    database: &TestDatabase,
    sealing: Arc<SealingKeys>,
    circuits: CircuitPolicy,
) -> NativeOutbox {
    let options = NativeOptions {
        lease: Duration::from_secs(60),
        horizon: Duration::from_secs(86_400),
        patience: Duration::from_secs(5),
        schemes: UrlSchemes::HttpsOnly,
        sealing,
        circuits,
    };
    NativeOutbox::new(database.pool(), options)
}

/// Verifies a webhook as a buyer who fetched this JWKS. Gives the `kid`.
pub fn verify(post: &Post, url: &str, jwks: &Value) -> Result<String, String> {
    let keys = VerifyingKeys::parse(&jwks.to_string()).unwrap();
    let verifier = Verifier::new(keys, Revocation::default(), ReplayWindow::new(10));
    let arrived = Arrived { method: "POST", url, headers: &post.headers, body: &post.body };
    verifier.verify(arrived, SystemTime::now()).map_err(|refusal| refusal.to_string())
}

/// The delivery of a task's one webhook.
pub async fn delivery(client: &tokio_postgres::Client, task: &str) -> Value {
    let sql = "SELECT to_jsonb(d) FROM taskbell.delivery d WHERE task_id = $1";
    client.query_one(sql, &[&task]).await.unwrap().get(0)
}

/// The same, once it is in a state.
pub async fn delivery_in(client: &tokio_postgres::Client, task: &str, state: &str) -> Value {
    eventually(&format!("{task} {state}"), async || {
        let found = delivery(client, task).await;
        (found["state"] == state).then_some(found)
    })
    .await
}
