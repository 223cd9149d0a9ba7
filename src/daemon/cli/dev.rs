//! `dev`: the whole way of a delivery on one machine, to watch it.
//!
//! An embedded PostgreSQL (or `DATABASE_URL`), the daemon, a sample seller whose people take
//! human-looking seconds, and a sample buyer that verifies what arrives. Nothing here is a
//! shortcut: the seller uses the registry, the buyer gets real signed webhooks over HTTP.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::receive::{self, Arrival, Proof};
use super::stop_on_signal;
use crate::daemon::config::{Config, Sources};
use crate::daemon::database::Connector;
use crate::daemon::embedded::{self, EmbeddedOptions, EmbeddedPostgres, usable_directory};
use crate::daemon::keys::read_ring;
use crate::daemon::{run, telemetry};
use crate::migrations;
use crate::registry::{NewTask, PostgresTaskRegistry, Scope, TaskRegistry};
use crate::task::{AccountId, Registration, Status, TaskId, TaskType, UrlSchemes};
use crate::webhook::verify::VerifyingKeys;
use crate::webhook::{KeyRing, SigningAlgorithm, SigningKey};

#[derive(Debug, Args)]
pub(super) struct Dev {
    /// Begin with an empty database.
    #[arg(long)]
    fresh: bool,
    /// Where the embedded database lives.
    #[arg(long, default_value = ".taskbell")]
    directory: PathBuf,
    /// The embedded database's port on 127.0.0.1; a free one if absent.
    #[arg(long)]
    port: Option<u16>,
    /// Stop by itself after so many verified webhooks.
    #[arg(long)]
    deliveries: Option<usize>,
}

impl Dev {
    pub(super) async fn run(self, mut sources: Sources) -> anyhow::Result<()> {
        let stop = stop_on_signal()?;
        let given = sources.database_url.clone().or_else(|| sources.environment.get("DATABASE_URL").cloned());
        let (server, dsn) = match given {
            Some(dsn) => (None, dsn),
            None => {
                let (server, dsn) = self.start_server()?;
                (Some(server), dsn)
            }
        };
        sources.database_url = Some(dsn.clone());
        for (key, value) in [
            ("TASKBELL_GUARD__ALLOW_HTTP", "true"),
            ("TASKBELL_GUARD__ALLOW_PRIVATE", "true"),
            ("TASKBELL_LOG__FILTER", "warn"),
            ("TASKBELL_METRICS__REFRESH", "5s"),
            ("TASKBELL_ADMIN__PAGE", "true"),
        ] {
            sources.environment.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        }
        let config = Config::load(&sources)?;
        let telemetry = telemetry::start(&config).context("log.filter")?;
        let connector = Connector::new(&config.database)?.durable();
        let mut client = connector.client().await?;
        migrations::apply(&mut client).await?;
        // So that register_webhook takes the sample buyer's http URL, here and from psql.
        client
            .batch_execute(ALLOW_HTTP)
            .await
            .context("the database could not be set up for http callbacks")?;
        let played = self.play(config, &connector, &dsn, stop).await;
        drop(client);
        telemetry.finish().await;
        if let Some(server) = server {
            server.stop();
        }
        played?;
        println!("stopped");
        Ok(())
    }

    fn start_server(&self) -> anyhow::Result<(EmbeddedPostgres, String)> {
        let directory = usable_directory(&self.directory)?;
        if self.fresh {
            embedded::clear(&directory)?;
        }
        let port = match self.port {
            Some(port) => port,
            None => std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port(),
        };
        println!("starting PostgreSQL in {} …", directory.display());
        let server = EmbeddedPostgres::start(&EmbeddedOptions {
            directory,
            durable: true,
            port: Some(port),
            remove_after: false,
            settings: Vec::new(),
        })?;
        Ok((server, format!("postgres://postgres@127.0.0.1:{port}/postgres")))
    }

    async fn play(
        &self,
        config: Config,
        connector: &Connector,
        dsn: &str,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let ring = match config.signing.default.key_files.as_slice() {
            [] => KeyRing::new(vec![SigningKey::generate(SigningAlgorithm::Ed25519, Some("taskbell-dev"))?])?,
            files => read_ring(files)?,
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let callback = format!("http://{}/adcp/webhooks", listener.local_addr()?);
        let stage = Arc::new(Stage { began: Instant::now(), settled: Mutex::default(), out: Mutex::new(()) });
        let (arrivals, arrived) = mpsc::unbounded_channel();
        // Whoever ends, ends all.
        let (parts, published) =
            (TaskTracker::new(), VerifyingKeys::parse(&ring.jwks(SystemTime::now()).to_string())?);
        let buyer = parts.spawn({
            let stop = stop.clone();
            async move {
                receive::serve(listener, Proof::of_keys(published), "http".to_owned(), arrivals, stop).await
            }
        });
        parts.spawn(audience(stage.clone(), arrived, self.deliveries, stop.clone()));
        let registry = PostgresTaskRegistry::new(connector.pool()?);
        let seller = Seller { registry, callback, stage: stage.clone(), dsn: dsn.to_owned() };
        let selling = parts.spawn({
            let stop = stop.clone();
            async move {
                tokio::select! {
                    () = stop.cancelled() => Ok(()),
                    ended = seller.run() => ended,
                }
            }
        });
        let mut config = config;
        if TcpListener::bind(config.admin).await.is_err() {
            config.admin.set_port(0);
        }
        let running = run::run(config, ring.into(), stop.clone(), |admin| {
            println!("page        http://{admin}/");
            println!("metrics     http://{admin}/metrics");
            println!("database    {dsn}\n");
        });
        tokio::pin!(running);
        let daemon = tokio::select! {
            ended = &mut running => ended,
            () = fail_fast(selling, buyer, stop.clone()) => running.await,
        };
        stop.cancel();
        parts.close();
        parts.wait().await;
        daemon
    }
}

/// Stops everything when the seller or the buyer fails.
async fn fail_fast(
    selling: tokio::task::JoinHandle<anyhow::Result<()>>,
    buyer: tokio::task::JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
) {
    let ended = tokio::select! {
        ended = selling => ended,
        ended = buyer => ended,
    };
    if let Ok(Err(error)) = ended {
        eprintln!("taskbell dev: {error:#}");
    }
    stop.cancel();
}

/// What seller and buyer share so that the timeline can say how long things took.
struct Stage {
    began: Instant,
    settled: Mutex<HashMap<TaskId, Instant>>,
    out: Mutex<()>,
}

impl Stage {
    fn say(&self, what: &str, id: &TaskId, rest: &str) {
        let _turn = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(
            std::io::stdout(),
            "{:>8.3} s  {what:<10} {id}  {rest}",
            self.began.elapsed().as_secs_f64()
        );
    }
}

/// Prints what the buyer verified.
async fn audience(
    stage: Arc<Stage>,
    mut arrived: mpsc::UnboundedReceiver<Arrival>,
    enough: Option<usize>,
    stop: CancellationToken,
) {
    let mut verified = 0;
    while let Some(Arrival { payload, proven_by, .. }) = arrived.recv().await {
        let Ok(id) = TaskId::parse(payload.task_id.as_str()) else { continue };
        let settled = stage.settled.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let took = settled.map_or("settled elsewhere".to_owned(), |at| {
            format!("{:.1} ms after the commit", at.elapsed().as_secs_f64() * 1e3)
        });
        let status = payload.status.map_or("unknown", Status::as_str);
        stage.say("verified", &id, &format!("{status}, {took}, signed by {proven_by}"));
        verified += 1;
        if enough.is_some_and(|enough| verified >= enough) {
            stop.cancel();
        }
    }
}

/// A seller whose people look at tasks one after the other.
struct Seller {
    registry: PostgresTaskRegistry,
    callback: String,
    stage: Arc<Stage>,
    dsn: String,
}

impl Seller {
    async fn run(self) -> anyhow::Result<()> {
        let account = AccountId::parse("acct_demo")?;
        let waiting = self.issue(&account, "create_media_buy", 0).await?;
        println!(
            "A task waits for you. In another terminal:\n\n  psql {} -c \"UPDATE decisioning_tasks SET state = 'completed', \
             result = '{{\\\"media_buy_id\\\": \\\"mb_1\\\"}}' WHERE task_id = '{waiting}'\"\n",
            self.dsn
        );
        for turn in 1.. {
            let task_type = TYPES[turn % TYPES.len()];
            let id = self.issue(&account, task_type, turn).await?;
            let submitted = Instant::now();
            sleep(pause(0.4, 1.2)).await;
            let progress = json!({ "percentage": 50, "current_step": "a person looks at it" });
            self.registry.update_progress(&id, Scope::Account(&account), progress).await?;
            let working = Instant::now();
            self.stage.say("working", &id, &format!("{:.1} s after it was submitted", seconds(submitted)));
            sleep(pause(0.6, 2.4)).await;
            self.stage
                .settled
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(id.clone(), Instant::now());
            let end = if turn % 4 == 0 {
                let error =
                    json!({ "code": "POLICY_VIOLATION", "message": "the creative is not acceptable" });
                self.registry.fail(&id, Scope::Account(&account), error).await?;
                "failed"
            } else {
                let result = json!({ "media_buy_id": format!("mb_{turn}"), "packages": [{ "package_id": "pkg_1", "budget": 60000.0 }] });
                self.registry.complete(&id, Scope::Account(&account), result).await?;
                "completed"
            };
            // From the commit on: the buyer may have it before we get to say so.
            if let Some(at) = self.stage.settled.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&id) {
                *at = Instant::now();
            }
            self.stage.say(end, &id, &format!("{:.1} s after work began; its commit rang", seconds(working)));
        }
        Ok(())
    }

    async fn issue(&self, account: &AccountId, task_type: &str, turn: usize) -> anyhow::Result<TaskId> {
        let config =
            json!({ "url": format!("{}/{turn}", self.callback), "operation_id": format!("op_{turn}") });
        let id = self
            .registry
            .issue(NewTask {
                account: account.clone(),
                task_type: TaskType::parse(task_type)?,
                request_context: Some(json!({ "campaign": "spring" })),
                registration: Some(Registration::parse(&config, UrlSchemes::AllowHttp)?),
            })
            .await?;
        self.stage.say("submitted", &id, task_type);
        Ok(id)
    }
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

fn pause(from: f64, to: f64) -> Duration {
    Duration::from_secs_f64(from + (to - from) * rand::random::<f64>())
}

const TYPES: [&str; 4] = ["create_media_buy", "sync_creatives", "activate_signal", "update_media_buy"];
const ALLOW_HTTP: &str = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET taskbell.allow_http = on', current_database()); END $$";
