//! Daemons as operators run them: real processes, started again when they end, each behind a
//! network of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, signal};
use super::proxy::Proxy;
use super::receiver::Receivers;

/// All of a run.
pub struct Fleet {
    pub slots: Vec<Slot>,
    cluster: Arc<Cluster>,
    environment: Vec<(String, String)>,
    /// What no daemon should ever do.
    pub complaints: Mutex<Vec<String>>,
    /// The longest that a daemon took to end after SIGTERM.
    pub longest_stop: Mutex<Duration>,
}

/// A place for one daemon after the other.
pub struct Slot {
    pub name: String,
    pub proxy: Proxy,
    process: Mutex<Option<Process>>,
    lives: Mutex<u32>,
    /// Nobody starts one here while a fault wants it down.
    held_down: Mutex<bool>,
    /// Held by the fault that is done to this one's process: two would hide each other.
    pub turn: tokio::sync::Mutex<()>,
}

impl Slot {
    /// The name in the `User-Agent` of the process that runs, or ran last.
    pub fn process_name(&self) -> String {
        format!("{}-{}", self.name, self.lives.lock().unwrap())
    }
}

struct Process {
    child: Child,
    seen: Arc<Mutex<Seen>>,
}

/// What it has logged.
#[derive(Default)]
struct Seen {
    admin: Option<String>,
    tail: std::collections::VecDeque<String>,
    panicked: bool,
}

impl Fleet {
    pub async fn start(many: usize, cluster: &Arc<Cluster>, receivers: &Receivers) -> Arc<Self> {
        let key = cluster.directory.join("key.jwk");
        let mut generate = Command::new(TASKBELL);
        generate.env_clear().args(["keys", "generate"]).arg(&key);
        generate.stdout(Stdio::null()).stderr(Stdio::null());
        assert!(generate.status().unwrap().success());
        let mut slots = Vec::new();
        for number in 0..many {
            slots.push(Slot {
                name: format!("d{number}"),
                proxy: Proxy::start(cluster.socket()).await,
                process: Mutex::default(),
                lives: Mutex::default(),
                held_down: Mutex::default(),
                turn: tokio::sync::Mutex::default(),
            });
        }
        let fleet = Arc::new(Self {
            slots,
            cluster: cluster.clone(),
            environment: environment(&key, receivers.ca_file.path()),
            complaints: Mutex::default(),
            longest_stop: Mutex::default(),
        });
        for slot in &fleet.slots {
            fleet.spawn(slot);
        }
        fleet
    }

    /// Starts again what has ended by itself, as an init system does, until `stop` is cancelled.
    pub async fn tend(self: Arc<Self>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            for slot in &self.slots {
                let held_down = slot.held_down.lock().unwrap();
                let ended =
                    slot.process.lock().unwrap().as_mut().map(|process| process.child.try_wait().unwrap());
                match ended {
                    Some(Some(status)) if !*held_down => self.bury(slot, status, false),
                    None if !*held_down => self.spawn(slot),
                    Some(_) | None => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Starts a daemon where none runs.
    fn spawn(&self, slot: &Slot) {
        *slot.lives.lock().unwrap() += 1;
        // The name stands in the book of leases too: leases.sql.
        let database = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=disable options='-c chaos.holder={}'",
            slot.proxy.port,
            slot.process_name()
        );
        let mut command = Command::new(TASKBELL);
        command.env_clear().arg("run").envs(self.environment.iter().cloned());
        command.env("DATABASE_URL", database).env("TASKBELL_HTTP__USER_AGENT", slot.process_name());
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        self.cluster.started(child.id());
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (lines, kept) = (BufReader::new(child.stderr.take().unwrap()).lines(), seen.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().unwrap().hear(line);
            }
        });
        *slot.process.lock().unwrap() = Some(Process { child, seen });
    }

    /// `kill -9`.
    pub fn kill(&self, slot: &Slot) {
        *slot.held_down.lock().unwrap() = true;
        let status = slot.process.lock().unwrap().as_mut().map(|process| {
            let _ = process.child.kill();
            process.child.wait().unwrap()
        });
        if let Some(status) = status {
            self.bury(slot, status, true);
        }
    }

    /// SIGTERM, and waits for the end. Says how long that took.
    pub async fn stop(&self, slot: &Slot) -> Option<Duration> {
        *slot.held_down.lock().unwrap() = true;
        let began = Instant::now();
        let ready = {
            let process = slot.process.lock().unwrap();
            let process = process.as_ref()?;
            signal("TERM", process.child.id());
            process.seen.lock().unwrap().admin.is_some()
        };
        loop {
            let ended = slot.process.lock().unwrap().as_mut()?.child.try_wait().unwrap();
            if let Some(status) = ended {
                // One that had not begun to run may end as it likes.
                if ready && !status.success() {
                    self.complain(slot, &format!("ended with {status} after SIGTERM"));
                }
                self.bury(slot, status, true);
                break;
            }
            if began.elapsed() > STOP_PATIENCE {
                self.complain(slot, "did not end after SIGTERM");
                self.kill(slot);
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = began.elapsed();
        let mut longest = self.longest_stop.lock().unwrap();
        *longest = took.max(*longest);
        Some(took)
    }

    /// Lets one run there again.
    pub fn release(&self, slot: &Slot) {
        *slot.held_down.lock().unwrap() = false;
    }

    pub fn freeze(&self, slot: &Slot, frozen: bool) {
        if let Some(process) = &*slot.process.lock().unwrap() {
            signal(if frozen { "STOP" } else { "CONT" }, process.child.id());
        }
    }

    /// The metrics of every daemon, summed by series; `None` while one does not answer.
    pub async fn metrics(&self) -> Option<std::collections::BTreeMap<String, f64>> {
        let mut sums = std::collections::BTreeMap::new();
        for slot in &self.slots {
            let admin = slot.process.lock().unwrap().as_ref()?.seen.lock().unwrap().admin.clone()?;
            let response = reqwest::get(format!("http://{admin}/metrics")).await.ok()?;
            for line in response.text().await.ok()?.lines().filter(|line| !line.starts_with('#')) {
                if let Some((series, value)) = line.rsplit_once(' ') {
                    *sums.entry(series.to_owned()).or_default() += value.parse::<f64>().unwrap_or(0.0);
                }
            }
        }
        Some(sums)
    }

    /// How many processes there were.
    pub fn lives(&self) -> u32 {
        self.slots.iter().map(|slot| *slot.lives.lock().unwrap()).sum()
    }

    /// The last lines of every daemon, for whoever must find out what happened.
    pub fn tails(&self) -> String {
        let tail = |slot: &Slot| {
            let process = slot.process.lock().unwrap();
            process.as_ref().map(|process| process.seen.lock().unwrap().tail()).unwrap_or_default()
        };
        self.slots.iter().map(|slot| format!("-- {}\n{}\n", slot.name, tail(slot))).collect()
    }

    fn bury(&self, slot: &Slot, status: ExitStatus, wanted: bool) {
        let Some(process) = slot.process.lock().unwrap().take() else { return };
        self.cluster.ended(process.child.id());
        let seen = process.seen.lock().unwrap();
        // Without a database it cannot start; once it runs, it never ends by itself.
        if seen.panicked || (!wanted && seen.admin.is_some()) {
            self.complain(slot, &format!("ended by itself with {status}:\n{}", seen.tail()));
        }
    }

    fn complain(&self, slot: &Slot, what: &str) {
        self.complaints.lock().unwrap().push(format!("{} {what}", slot.process_name()));
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for slot in &self.slots {
            self.kill(slot);
        }
    }
}

impl Seen {
    fn hear(&mut self, line: String) {
        if line.contains("taskbell runs") {
            let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            self.admin = json["admin"].as_str().map(str::to_owned);
        }
        self.panicked |= line.contains("panicked");
        self.tail.push_back(line);
        if self.tail.len() > 40 {
            self.tail.pop_front();
        }
    }

    fn tail(&self) -> String {
        self.tail.iter().cloned().collect::<Vec<_>>().join("\n")
    }
}

fn environment(key: &Path, ca_file: &Path) -> Vec<(String, String)> {
    let path = |path: &Path| path.display().to_string();
    let mut environment: Vec<(String, String)> =
        SETTINGS.iter().map(|(key, value)| (format!("TASKBELL_{key}"), (*value).to_owned())).collect();
    environment.push(("TASKBELL_SIGNING__KEY_FILES".to_owned(), path(key)));
    environment.push(("TASKBELL_HTTP__CA_FILE".to_owned(), path(ca_file)));
    environment
}

const TASKBELL: &str = env!("CARGO_BIN_EXE_taskbell");
/// Everything short, so that much happens in little time.
const SETTINGS: [(&str, &str); 17] = [
    ("ADMIN__LISTEN", "127.0.0.1:0"),
    ("DATABASE__STATEMENT_TIMEOUT", "2s"),
    ("WORKER__CONCURRENCY", "64"),
    ("WORKER__PER_LANE", "16"),
    ("WORKER__PAYLOAD_MIB", "1"),
    ("WORKER__LEASE", "6s"),
    ("WORKER__DEADLINE", "1s"),
    ("WORKER__GRACE", "3s"),
    ("WORKER__SAFETY_POLL", "5s"),
    ("WORKER__PROBE", "1s"),
    ("RETRY__SCHEDULE", "100ms,300ms,1s"),
    ("GUARD__ALLOW_PRIVATE", "true"),
    ("METRICS__REFRESH", "1s"),
    ("LOG__FORMAT", "json"),
    ("LOG__FILTER", "warn,taskbell::daemon::run=info"),
    // Short pauses: a receiver that is well again must have everything before the run ends.
    ("LANES__PAUSE", "100ms"),
    ("LANES__MAX_PAUSE", "1s"),
];
pub const LEASE: Duration = Duration::from_secs(6);
/// The grace, and time to give back what is left.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
