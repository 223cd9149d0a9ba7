//! Open files: each connection to a buyer is one, and many systems let a process have 1,024 at first, for the sake of
//! programs that call `select`. How many it may give itself is a limit of its own, as a rule far higher.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Besides connections to buyers: sockets and files of up to 64 lookups, connections to the database, the admin
/// listener, scrapes, logs.
const OTHERS: u64 = 192;

/// Has this process open as many files as so many connections to buyers need.
///
/// # Errors
/// It may not.
pub fn allow(connections: usize) -> Result<(), TooFew> {
    let needed = connections as u64 + OTHERS;
    let Rlimit { current: Some(allowed), maximum } = getrlimit(Resource::Nofile) else { return Ok(()) };
    if allowed >= needed {
        return Ok(());
    }
    let limit = maximum.map_or(needed, |maximum| maximum.min(needed));
    // Refused by a sandbox, perhaps.
    let allowed = match setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum }) {
        Ok(()) => limit,
        Err(_) => allowed,
    };
    if allowed < needed { Err(TooFew { allowed, needed }) } else { Ok(()) }
}

/// The process may not open as many files as it may come to need.
#[derive(Debug, thiserror::Error)]
#[error(
    "this process may open {allowed} files, and as many attempts at once as worker.concurrency allows need {needed}: \
     raise LimitNOFILE= of the service (`ulimit -Hn` elsewhere), or lower worker.concurrency"
)]
pub struct TooFew {
    allowed: u64,
    needed: u64,
}
