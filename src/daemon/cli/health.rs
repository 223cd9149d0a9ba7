//! `taskbell health`: asks the daemon on this machine, as a container's health check does.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::daemon::config::Config;

/// What to ask.
#[derive(Debug, Args)]
pub(super) struct Health {
    /// Ask whether it is ready (/readyz) instead of whether it is alive (/healthz).
    #[arg(long)]
    ready: bool,
}

impl Health {
    /// Exit code 0 when the daemon says yes, 1 when it says no.
    pub(super) async fn run(self, config: &Config) -> anyhow::Result<u8> {
        let path = if self.ready { "/readyz" } else { "/healthz" };
        let (yes, says) = daemon_says(config, path).await?;
        println!("{says}");
        Ok(u8::from(!yes))
    }
}

/// What the daemon on this machine answers, and whether that is a yes.
///
/// # Errors
/// None is there, or it does not answer.
pub(super) async fn daemon_says(config: &Config, path: &str) -> anyhow::Result<(bool, String)> {
    let address = reachable(config.admin);
    let answer = timeout(PATIENCE, ask(address, path))
        .await
        .with_context(|| format!("the admin listener on {address} does not answer"))?
        .with_context(|| format!("no daemon listens on {address} (admin.listen)"))?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("what listens on {address} (admin.listen) is no daemon of ours");
    };
    // "HTTP/1.0 200 OK"
    Ok((head.split(' ').nth(1) == Some("200"), body.trim_end().to_owned()))
}

/// One HTTP/1.0 exchange, after which the server closes.
async fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Who listens everywhere listens here.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let here = match listen {
        SocketAddr::V4(at) if at.ip().is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(at) if at.ip().is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        at => at.ip(),
    };
    SocketAddr::new(here, listen.port())
}

/// Shorter than the timeout of a usual health check.
const PATIENCE: Duration = Duration::from_secs(3);
const MAX_ANSWER: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_address_is_asked_on_this_machine() {
        for (listen, asked) in [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("[::]:1", "[::1]:1"),
            ("10.1.2.3:80", "10.1.2.3:80"),
            ("127.0.0.1:9464", "127.0.0.1:9464"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
