//! What processes cost: processor time and memory, as Linux counts them.

use std::fs;
use std::time::Instant;

/// One process, or one with everything it has started.
pub struct Processes(Vec<u32>);

impl Processes {
    pub fn one(pid: u32) -> Self {
        Self(vec![pid])
    }

    /// As it stands now: what is started later does not count, what has ended is nothing.
    pub fn family(pid: u32) -> Self {
        let mut family = vec![pid];
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(child) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            if stat(child).is_some_and(|stat| stat.parent == pid) {
                family.push(child);
            }
        }
        Self(family)
    }

    /// Processor time so far, in user and kernel, of the living and of their children that have ended.
    pub fn cpu_seconds(&self) -> f64 {
        let ticks: u64 = self.0.iter().filter_map(|pid| stat(*pid)).map(|stat| stat.ticks).sum();
        ticks as f64 / TICKS_A_SECOND
    }

    /// The same to the nanosecond, of the living only.
    pub fn busy_seconds(&self) -> f64 {
        self.threads("schedstat")
            .map(|text| text.split(' ').next().unwrap().parse::<f64>().unwrap())
            .sum::<f64>()
            / 1e9
    }

    /// Resident memory in MiB: now, and at its highest.
    pub fn resident_mib(&self) -> (f64, f64) {
        let sum = |name| self.0.iter().map(|pid| status_kib(*pid, name)).sum::<f64>() / 1024.0;
        (sum("VmRSS:"), sum("VmHWM:"))
    }

    /// How often they were put to sleep by themselves: wake-ups.
    pub fn voluntary_switches(&self) -> f64 {
        self.threads("status").map(|text| field(&text, "voluntary_ctxt_switches:")).sum()
    }

    fn threads(&self, file: &'static str) -> impl Iterator<Item = String> {
        let directories =
            self.0.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
        directories.flatten().filter_map(move |thread| fs::read_to_string(thread.path().join(file)).ok())
    }
}

/// How busy all processors of the machine are, from a moment on.
pub struct Busy {
    idle: f64,
    began: Instant,
}

impl Busy {
    pub fn from_now() -> Self {
        Self { idle: idle_seconds(), began: Instant::now() }
    }

    /// Of all that they could have done.
    pub fn share(&self) -> f64 {
        1.0 - (idle_seconds() - self.idle) / (self.began.elapsed().as_secs_f64() * cores())
    }
}

pub fn cores() -> f64 {
    std::thread::available_parallelism().unwrap().get() as f64
}

/// `proc_stat(5)`: of all processors together, without a task or with none but such as wait for the disk.
fn idle_seconds() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let fields = text.lines().next().unwrap().split_whitespace();
    fields.skip(4).take(2).map(|field| field.parse::<f64>().unwrap()).sum::<f64>() / TICKS_A_SECOND
}

struct Stat {
    parent: u32,
    ticks: u64,
}

/// `proc_pid_stat(5)`: after the name, which may hold anything, the fields from the third on.
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields[11..15].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Some(Stat { parent: fields[1].parse().ok()?, ticks })
}

fn status_kib(pid: u32, name: &str) -> f64 {
    field(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(), name)
}

fn field(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// `sysconf(_SC_CLK_TCK)`, which is this on every Linux.
const TICKS_A_SECOND: f64 = 100.0;
