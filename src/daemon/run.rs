//! The daemon's whole life on one page: connect, check, start the parts, stop in two phases.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use metrics::gauge;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admin::page::{Board, Gate, Health, Page};
use super::admin::{self, Admin};
use super::config::Config;
use super::database::{Connector, tls_config};
use super::gauges::{Desk, Gauges};
use super::manager::Manager;
use super::overdue::Overdue;
use super::pooler::{self, Pooling};
use super::pulse::Pulse;
use super::reporter::Reporter;
use super::{descriptors, keys, sealer, sources, telemetry};
use crate::listener::{Doorbell, Listener};
use crate::metrics as names;
use crate::migrations;
use crate::webhook::{KeySets, Sender, SenderOptions, Signer};
use crate::worker::{Worker, WorkerSettings, World};

/// Runs until `stop` is cancelled. `ready` is told the admin listener's address once the
/// daemon serves.
///
/// # Errors
/// The daemon could not start: the message says what to do.
pub async fn run(
    config: Config,
    key_sets: KeySets,
    stop: CancellationToken,
    ready: impl FnOnce(std::net::SocketAddr),
) -> anyhow::Result<()> {
    let randomness = tokio::task::spawn_blocking(telemetry::gather_entropy);
    let connector = Connector::new(&config.database)?;
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        checked = check_database(&connector, config.database.patience()) => checked?,
    }
    let listener = TcpListener::bind(config.admin)
        .await
        .with_context(|| format!("admin.listen: {} cannot be bound", config.admin))?;
    let address = listener.local_addr()?;
    let types = names::TaskTypes::new(config.metrics.task_types.iter().cloned());
    let metrics = install_metrics(&config, &types)?;
    let pool = connector.pool()?;
    if let Err(error) = keys::require_signing(&key_sets, SystemTime::now()) {
        tracing::warn!(%error, "webhooks that must be signed wait until there is a key");
    }
    let sealing = Arc::new(keys::read_sealing_keys(&config.sealing_key_files)?);
    if let Err(error) = descriptors::allow(max_connections(&config)) {
        tracing::warn!("{error}");
    }
    let sender = sender(&config)?;
    let signer = Arc::new(Signer::new(key_sets, config.legacy));
    let (outbox, safety_poll) = sources::outboxes(&config, &pool, sealing.clone()).await?;
    let outbox = Arc::new(outbox);

    // Everything but the worker stops last: it needs them to drain.
    let (services, tasks) = (CancellationToken::new(), TaskTracker::new());
    let (ears, wakes, listener_up) = Listener::new(connector.handle(), config.probe);
    tasks.spawn(ears.run(services.clone()));
    let (doorbell, porter) = Doorbell::new(connector.handle(), services.clone());
    tasks.spawn(porter);
    tasks.spawn(publish_listener(listener_up.clone(), services.clone()));
    tasks.spawn(upkeep(metrics.clone(), services.clone()));
    if config.signing.has_files() {
        tasks.spawn(keys::follow(config.signing.clone(), signer.clone(), services.clone()));
    }
    tasks.spawn(sealer::run(pool.clone(), sealing, config.database.patience(), services.clone()));
    let overdue = Overdue {
        pool: connector.durable_pool()?,
        metrics: config.metrics.clone(),
        patience: config.database.patience(),
        fail_after: config.fail_after.clone(),
    };
    tasks.spawn(overdue.run(services.clone()));
    let gauges = Gauges {
        sla: config.metrics.sla.clone(),
        types: types.clone(),
        sealed_table: config.sealed.as_ref().map(|source| source.table.clone()),
    };
    let reporter = Reporter {
        desk: Desk::new(pool.clone(), gauges, config.database.patience(), config.metrics.refresh * LAPSE),
        pool,
        patience: config.database.patience(),
        outbox: outbox.clone(),
        refresh: config.metrics.refresh,
        keep: config.keep,
    };
    tasks.spawn(reporter.run(services.clone()));
    let (accepting, is_accepting) = watch::channel(true);
    let worker = Worker::new(
        outbox,
        Arc::new(RealWorld),
        sender,
        signer.clone(),
        doorbell,
        wakes,
        WorkerSettings {
            concurrency: config.concurrency,
            per_lane: config.per_lane,
            payload: config.payload,
            linger: config.linger,
            yield_for: config.yield_for,
            safety_poll,
            grace: config.grace,
            deadline: config.deadline,
            retry: config.retry.clone(),
            task_types: types,
        },
    );
    let page = config.page.as_ref().map(|page| {
        let health = Health { listener_up: listener_up.clone(), outbox_up: worker.outbox_up() };
        let sealed_table = config.sealed.as_ref().map(|source| source.table.clone());
        let board = Arc::new(Board::new(connector.clone(), sealed_table, health));
        tasks.spawn(board.clone().run(services.clone()));
        Page { gate: Gate::new(page.token.as_ref()), board, stop: services.clone() }
    });
    let pulse = Pulse::new(worker.due_back(), config.database.patience() * EXCHANGES);
    let manager = Manager {
        listener_up: listener_up.clone(),
        outbox_up: worker.outbox_up(),
        pulse: pulse.clone(),
        grace: config.grace,
    };
    tasks.spawn(manager.report(stop.clone(), services.clone()));
    let admin = Admin {
        metrics,
        listener_up,
        outbox_up: worker.outbox_up(),
        pulse,
        accepting: is_accepting,
        signer: signer.clone(),
    };
    let served = tasks.spawn(admin::serve(listener, admin, page, services.clone()));
    randomness.await.context("gathering entropy panicked")?;
    let mut working = tasks.spawn(worker.run(stop.clone()));
    ready(address);
    tracing::info!(admin = %address, "taskbell runs");

    let drained = tokio::select! {
        // A worker never ends by itself: it panicked, and a new process is the only honest repair.
        ended = &mut working => ended,
        () = stop.cancelled() => {
            tracing::info!("stopping: nothing new is claimed, attempts in flight are finished");
            accepting.send_replace(false);
            working.await
        }
    };
    accepting.send_replace(false);
    services.cancel();
    tasks.close();
    tasks.wait().await;
    served.await.context("the admin listener panicked")??;
    drained.context("the worker panicked; what it had claimed is repeated when its leases run out")?;
    tracing::info!("stopped");
    Ok(())
}

/// A sender as the configuration wants it.
///
/// # Errors
/// The trusted certificates cannot be read, or the HTTP client cannot be built.
pub fn sender(config: &Config) -> anyhow::Result<Sender> {
    let tls = tls_config(config.http_ca_file.as_deref()).context("http.ca_file")?;
    let options = SenderOptions {
        max_connections: max_connections(config),
        user_agent: config.user_agent.clone(),
        ..SenderOptions::default()
    };
    Ok(Sender::new(tls, config.guard.clone(), &options)?)
}

/// Connections to buyers, those in use and a third of as many that were: descriptors and memory have limits too.
fn max_connections(config: &Config) -> usize {
    config.concurrency + config.concurrency / 3
}

/// A database that can be worked with, and a schema that this build knows.
async fn check_database(connector: &Connector, patience: Duration) -> anyhow::Result<()> {
    match pooler::look(connector).await? {
        Pooling::None => {}
        Pooling::Transactions { keeps_prepared: true } => tracing::warn!("{}", pooler::DEAF),
        Pooling::Transactions { keeps_prepared: false } => bail!(pooler::FORGETS),
    }
    let mut client = connector.client().await?;
    let version = timeout(patience, migrations::current(&mut client)).await;
    let version = version.context("the database does not answer")?;
    let version = version.context("the schema version cannot be read")?;
    match version {
        migrations::LATEST => Ok(()),
        0 => bail!("the database has no schema taskbell yet: run `taskbell migrate`"),
        older if older < migrations::LATEST => {
            bail!(
                "the schema taskbell is at version {older}, this build needs {}: run `taskbell migrate`",
                migrations::LATEST
            )
        }
        newer => bail!(
            "the schema taskbell is at version {newer}, this build knows {}: use a newer build",
            migrations::LATEST
        ),
    }
}

fn install_metrics(config: &Config, types: &names::TaskTypes) -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(names::TASK_DURATION.to_owned()), &config.metrics.task_buckets)?
        .set_buckets_for_metric(Matcher::Full(names::TASK_STATE.to_owned()), &config.metrics.task_buckets)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &WIRE_BUCKETS)?
        .install_recorder()
        .context("a metrics recorder is installed already")?;
    names::publish(types);
    for task_type in config.metrics.sla.keys().chain(&config.metrics.task_types) {
        names::expect(types, task_type);
    }
    metrics_process::Collector::default().describe();
    Ok(handle)
}

async fn publish_listener(mut up: watch::Receiver<bool>, stop: CancellationToken) {
    loop {
        gauge!(names::LISTENER_UP).set(f64::from(u8::from(*up.borrow_and_update())));
        tokio::select! {
            () = stop.cancelled() => return,
            changed = up.changed() => if changed.is_err() { return },
        }
    }
}

/// Histogram samples are kept until somebody folds them into their buckets.
async fn upkeep(metrics: PrometheusHandle, stop: CancellationToken) {
    let mut beat = tokio::time::interval(UPKEEP);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => metrics.run_upkeep(),
        }
    }
}

/// Chance and time as they are.
struct RealWorld;

impl World for RealWorld {
    fn chance(&self) -> f64 {
        rand::random()
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// From a fast receiver to the deadline and, for acceptance, to the horizon.
const WIRE_BUCKETS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 300.0, 3600.0, 21_600.0, 86_400.0];
/// More than a turn has with the database one after the other, each with an end of its own. What takes
/// longer than all of them is no slow database.
const EXCHANGES: u32 = 6;
/// Beats without a refresh after which a daemon's turn at the gauges is over.
const LAPSE: u32 = 4;
const UPKEEP: Duration = Duration::from_secs(5);
