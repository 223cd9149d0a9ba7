//! What the daemon on this machine says of itself. It writes, so it knows of a full disk, which
//! cannot be seen from here; it need not run here at all.

use super::super::health::daemon_says;
use super::finding::Findings;
use crate::daemon::config::Config;

pub(super) async fn daemon(config: &Config, found: &mut Findings) {
    for (path, remedy) in [
        ("/healthz", "end it: a new process is the only repair"),
        (
            "/readyz",
            "its log says why; outbox: it cannot write (read-only, disk full); listener: it hears no bell",
        ),
    ] {
        match daemon_says(config, path).await {
            Ok((true, says)) => found.ok("daemon", says),
            Ok((false, says)) => return found.fail("daemon", says, remedy),
            Err(error) => return found.ok("daemon", format!("{error:#}: not looked at")),
        }
    }
}
