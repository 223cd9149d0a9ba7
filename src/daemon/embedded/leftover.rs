//! What an earlier run may have left: data of another version, a lock file, a server.
//!
//! A lock file alone proves nothing, because process ids are used again: by now its number may
//! be that of somebody's production server. Only a process whose command line names our data
//! directory is ours, and one that still has its shell is a running neighbour, not an orphan.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{EmbeddedError, POLL};

/// Refuses data that the server at `bin` cannot read.
pub(super) fn check_version(bin: &Path, data: &Path) -> Result<(), EmbeddedError> {
    let file = data.join("PG_VERSION");
    let kept = fs::read_to_string(&file).map_err(EmbeddedError::io(&file))?.trim().to_owned();
    let postgres = bin.join("postgres");
    let printed = Command::new(&postgres).arg("--version").output().map_err(EmbeddedError::io(&postgres))?;
    let server = version_number(&String::from_utf8_lossy(&printed.stdout));
    if major(&server) == kept { Ok(()) } else { Err(EmbeddedError::OtherVersion { kept, server }) }
}

/// `17.2` of `postgres (PostgreSQL) 17.2 (Debian 17.2-1)`.
fn version_number(printed: &str) -> String {
    let mut words = printed.split_whitespace();
    words.find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap_or_default().to_owned()
}

fn major(version: &str) -> &str {
    version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default()
}

/// Stops the server of this data directory that outlived its shell, and waits for it.
pub(super) fn stop(directory: &Path, data: &Path) -> Result<(), EmbeddedError> {
    let lock_file = data.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&lock_file) else { return Ok(()) };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else {
        return Ok(());
    };
    let server = |process: &Process| process.arguments.contains(&format!("-D {} ", data.display()));
    let Some(process) = Process::look(pid) else { return Ok(()) };
    if !server(&process) {
        // Its number is somebody else's now, for which PostgreSQL would refuse to start.
        return fs::remove_file(&lock_file).map_err(EmbeddedError::io(&lock_file));
    }
    let shell = |process: &Process| process.arguments.contains(&format!("sh {} ", directory.display()));
    let supervised = Process::look(process.parent).is_some_and(|parent| shell(&parent));
    if !supervised {
        let _ = Command::new("kill").args(["-INT", &pid.to_string()]).status();
    }
    // A run that was killed a moment ago: its shell is stopping the server by itself.
    let (began, patience) = (Instant::now(), if supervised { HANDOVER } else { PATIENCE });
    while Process::look(pid).is_some_and(|process| server(&process)) {
        if began.elapsed() > patience {
            let directory = directory.to_owned();
            return Err(match supervised {
                true => EmbeddedError::InUse { directory, pid },
                false => EmbeddedError::Orphan { pid },
            });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

struct Process {
    parent: u32,
    /// Joined by spaces, with one at the end.
    arguments: String,
}

impl Process {
    /// From `/proc` where there is one, else from `ps` (macOS).
    fn look(pid: u32) -> Option<Self> {
        if Path::new("/proc/self/cmdline").exists() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            return Some(Self { parent, arguments: String::from_utf8_lossy(&arguments).replace('\0', " ") });
        }
        let pid = pid.to_string();
        let output = Command::new("ps").args(["-ww", "-o", "ppid=,args=", "-p", &pid]).output().ok()?;
        let line = String::from_utf8(output.stdout).ok()?;
        let (parent, arguments) = line.trim().split_once(' ')?;
        Some(Self { parent: parent.parse().ok()?, arguments: format!("{arguments} ") })
    }
}

const HANDOVER: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_servers_print() {
        for (printed, expected) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "15"),
            ("postgres (PostgreSQL) 17.2 (Homebrew)", "17"),
            ("postgres (PostgreSQL) 18beta1", "18"),
            ("", ""),
        ] {
            assert_eq!(major(&version_number(printed)), expected);
        }
    }
}
