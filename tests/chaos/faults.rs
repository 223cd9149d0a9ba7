//! What is done to daemons, database and network: kinds, how often, and a log of what was done.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_postgres::Client;

use super::cluster::Cluster;
use super::daemons::{Fleet, LEASE, Slot};
use super::proxy::Weather;
use super::receiver::Receivers;

/// What may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// SIGKILL to a daemon.
    Kill,
    /// SIGTERM to a daemon.
    Stop,
    /// SIGSTOP, and SIGCONT after its leases have run out.
    Freeze,
    /// SIGSTOP for a moment.
    Stutter,
    /// SIGKILL to the postmaster.
    Crash,
    /// `pg_terminate_backend` of a listener or a doorbell.
    TerminateEar,
    /// The same of any connection, sellers' too.
    Terminate,
    /// Some connections of a daemon are closed.
    Cut,
    /// Some connections of a daemon go silent for a while, or for good.
    Blackhole,
    /// Nothing passes between a daemon and the database for a while.
    Partition,
    /// A session that is idle in its transaction.
    PinXmin,
    /// "No space left" for every attempt, or every journal row, that is written.
    DiskFull,
    /// A destination refuses connections.
    ReceiverDown,
    /// The database's clock leaps ahead for some claims: their leases are over.
    LeaseLeap,
    /// The same for some retries, by days: their horizon is over.
    HorizonLeap,
}

impl Kind {
    pub const ALL: [Self; 15] = [
        Self::Kill,
        Self::Stop,
        Self::Freeze,
        Self::Stutter,
        Self::Crash,
        Self::TerminateEar,
        Self::Terminate,
        Self::Cut,
        Self::Blackhole,
        Self::Partition,
        Self::PinXmin,
        Self::DiskFull,
        Self::ReceiverDown,
        Self::LeaseLeap,
        Self::HorizonLeap,
    ];

    /// Out of a sum of all.
    fn weight(self) -> u32 {
        match self {
            Self::Kill | Self::Stop | Self::Terminate | Self::Cut => 12,
            Self::Freeze | Self::Crash | Self::Partition => 3,
            Self::Stutter | Self::TerminateEar | Self::Blackhole | Self::DiskFull => 6,
            Self::PinXmin | Self::ReceiverDown | Self::LeaseLeap => 6,
            Self::HorizonLeap => 2,
        }
    }

    fn is_of_a_process(self) -> bool {
        matches!(self, Self::Kill | Self::Stop | Self::Freeze | Self::Stutter)
    }

    /// Whether no answer of the database to a daemon can get lost by it: then each transition is
    /// observed exactly once.
    pub fn is_gentle(self) -> bool {
        use Kind::{DiskFull, Freeze, HorizonLeap, LeaseLeap, PinXmin, ReceiverDown, Stutter, TerminateEar};
        matches!(
            self,
            Freeze | Stutter | TerminateEar | PinXmin | DiskFull | ReceiverDown | LeaseLeap | HorizonLeap
        )
    }
}

/// One fault, as it was.
#[derive(Debug, Clone)]
pub struct Fault {
    pub kind: Kind,
    /// What it was done to: a process (`d0-3`), the network of a daemon (`d0`), or everybody.
    pub of: Option<String>,
    pub from: Instant,
    pub until: Instant,
}

/// Does things until it is told to stop.
pub struct Mischief {
    pub cluster: Arc<Cluster>,
    pub fleet: Arc<Fleet>,
    pub receivers: Arc<Receivers>,
    pub kinds: Vec<Kind>,
    pub done: Mutex<Vec<Fault>>,
}

impl Mischief {
    /// Goes on for this long; comes back when everything that passes has passed. Connections
    /// that went silent for good stay so.
    pub async fn run(self: &Arc<Self>, seed: u64, lasts: Duration, pause: Duration) {
        let mut dice = StdRng::seed_from_u64(seed);
        let (began, mut under_way) = (Instant::now(), JoinSet::new());
        while began.elapsed() < lasts {
            sleep(pause.mul_f64(dice.random_range(0.1..1.9))).await;
            let kind = self.choose(&mut dice);
            // One at a time of those that would only hide each other.
            if kind == Kind::Crash {
                self.one(kind, dice.random()).await;
            } else {
                let (this, seed) = (self.clone(), dice.random());
                under_way.spawn(async move { this.one(kind, seed).await });
            }
        }
        while let Some(ended) = under_way.join_next().await {
            ended.unwrap();
        }
    }

    fn choose(&self, dice: &mut StdRng) -> Kind {
        let mut at = dice.random_range(0..self.kinds.iter().map(|kind| kind.weight()).sum());
        for kind in &self.kinds {
            match kind.weight() {
                weight if at < weight => return *kind,
                weight => at -= weight,
            }
        }
        unreachable!("the dice stay below the sum")
    }

    async fn one(&self, kind: Kind, seed: u64) {
        let dice = &mut StdRng::seed_from_u64(seed);
        let slot = &self.fleet.slots[dice.random_range(0..self.fleet.slots.len())];
        let between = |dice: &mut StdRng, least, most| Duration::from_millis(dice.random_range(least..most));
        let turn = slot.turn.try_lock();
        if kind.is_of_a_process() && turn.is_err() {
            return;
        }
        let of = match kind {
            _ if kind.is_of_a_process() => Some(slot.process_name()),
            Kind::Cut | Kind::Blackhole | Kind::Partition => Some(slot.name.clone()),
            _ => None,
        };
        // Only those need it.
        let _turn = turn.ok().filter(|_| kind.is_of_a_process());
        let from = Instant::now();
        let done = match kind {
            Kind::Kill => {
                self.fleet.kill(slot);
                sleep(between(dice, 0, 1500)).await;
                self.fleet.release(slot);
                true
            }
            Kind::Stop => {
                let ended = self.fleet.stop(slot).await;
                sleep(between(dice, 0, 1000)).await;
                self.fleet.release(slot);
                ended.is_some()
            }
            Kind::Freeze => self.freeze(slot, LEASE + between(dice, 500, 2000)).await,
            Kind::Stutter => self.freeze(slot, between(dice, 50, 3000)).await,
            Kind::Crash => {
                self.cluster.crash();
                sleep(between(dice, 0, 2000)).await;
                self.cluster.restart().await;
                true
            }
            Kind::TerminateEar => self.sql(TERMINATE_EAR).await,
            Kind::Terminate => self.sql(TERMINATE).await,
            Kind::Cut => {
                let some = [0.2, 1.0][dice.random_range(0..2)];
                slot.proxy.set(Weather::Cut, || dice.random_bool(some));
                true
            }
            Kind::Blackhole => {
                let lasts = dice.random_bool(0.5).then(|| between(dice, 500, 6000));
                slot.proxy.set(Weather::Silent, || dice.random_bool(0.3));
                if let Some(lasts) = lasts {
                    sleep(lasts).await;
                    slot.proxy.set_all(Weather::Clear);
                }
                true
            }
            Kind::Partition => {
                slot.proxy.set_all(Weather::Silent);
                sleep(between(dice, 500, 8000)).await;
                slot.proxy.set_all(if dice.random_bool(0.5) { Weather::Clear } else { Weather::Cut });
                slot.proxy.set_all(Weather::Clear);
                true
            }
            Kind::PinXmin => self.pin(between(dice, 500, 6000)).await,
            Kind::DiskFull => self.disk_full(dice.random_bool(0.5), between(dice, 500, 4000)).await,
            Kind::ReceiverDown => {
                let lane = dice.random_range(0..self.receivers.lanes());
                self.receivers.close(lane, true);
                sleep(between(dice, 500, 4000)).await;
                self.receivers.close(lane, false);
                true
            }
            Kind::LeaseLeap => self.sql(LEASE_LEAP).await,
            Kind::HorizonLeap => self.sql(HORIZON_LEAP).await,
        };
        if done {
            self.done.lock().unwrap().push(Fault { kind, of, from, until: Instant::now() });
        }
    }

    async fn freeze(&self, slot: &Slot, lasts: Duration) -> bool {
        self.fleet.freeze(slot, true);
        sleep(lasts).await;
        self.fleet.freeze(slot, false);
        true
    }

    /// Whether it was done: the database may be down.
    async fn sql(&self, sql: &str) -> bool {
        match self.cluster.client().await {
            Ok(client) => client.batch_execute(sql).await.is_ok(),
            Err(_) => false,
        }
    }

    async fn pin(&self, lasts: Duration) -> bool {
        let Ok(client) = self.cluster.client().await else { return false };
        let pinned = client.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.is_ok();
        sleep(lasts).await;
        pinned
    }

    async fn disk_full(&self, attempts: bool, lasts: Duration) -> bool {
        let Ok(client) = self.cluster.client().await else { return false };
        let table = if attempts { "attempt" } else { "transition" };
        let full = client.batch_execute(&DISK_FULL.replace("{table}", table)).await.is_ok();
        sleep(lasts).await;
        // The repair must not fail, whatever else is broken.
        let mut client = Some(client);
        loop {
            let client = match client.take() {
                Some(client) => client,
                None => self.cluster.patient_client().await,
            };
            if repair(&client, table).await {
                return full;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn repair(client: &Client, table: &str) -> bool {
    let sql = format!("SET lock_timeout = '1s'; DROP TRIGGER IF EXISTS chaos_full ON taskbell.{table}");
    client.batch_execute(&sql).await.is_ok()
}

const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1";
const TERMINATE_EAR: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
     WHERE backend_type = 'client backend' AND (query ~ '^(LISTEN|SET synchronous_commit = off; NOTIFY)' \
         OR query ~ 'pg_advisory|pg_current_xact_id..::text|pg_snapshot_xmin|pg_try_advisory_xact_lock_shared') \
         AND application_name = 'taskbell' AND query !~ 'taskgaug|8386110886273709415' \
     ORDER BY random() LIMIT 1";
const LEASE_LEAP: &str = "UPDATE taskbell.outbox SET lease_expires_at = now() WHERE id IN \
     (SELECT id FROM taskbell.outbox WHERE state = 'in_flight' ORDER BY random() LIMIT 5 FOR UPDATE SKIP LOCKED)";
const HORIZON_LEAP: &str = "UPDATE taskbell.outbox SET first_attempt_at = first_attempt_at - interval '8 days', \
     retry_until = retry_until - interval '8 days' WHERE id IN \
     (SELECT id FROM taskbell.outbox WHERE state = 'pending' AND attempt_count > 0 LIMIT 2 FOR UPDATE SKIP LOCKED)";
const DISK_FULL: &str = "SET lock_timeout = '1s';
CREATE OR REPLACE FUNCTION public.chaos_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
END $$;
CREATE OR REPLACE TRIGGER chaos_full BEFORE INSERT ON taskbell.{table}
    FOR EACH ROW EXECUTE FUNCTION public.chaos_full()";
