//! Whether buyers' endpoints can be reached: the guard, a connection, a TLS handshake. No request
//! is sent.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::dns::{Name, Resolve};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::time::timeout;
use tokio_postgres::{Error, Transaction};
use url::{Host, Url};

use super::finding::Findings;
use crate::daemon::config::Config;
use crate::daemon::database::tls_config;
use crate::webhook::Resolver;

/// The lanes to look at: what is owed now, and what was used last.
pub(super) async fn lanes(transaction: &Transaction<'_>, config: &Config) -> Result<Vec<String>, Error> {
    let mut lanes: Vec<String> =
        transaction.query(DESTINATIONS, &[&MOST]).await?.iter().map(|row| row.get(0)).collect();
    if let Some(source) = &config.sealed {
        let sql = SDK_DESTINATIONS.replace("adcp_task_webhook_outbox", &source.table);
        lanes.extend(transaction.query(&sql, &[&MOST]).await?.iter().map(|row| row.get::<_, String>(0)));
    }
    let mut seen = BTreeSet::new();
    lanes.retain(|lane| seen.insert(lane.clone()));
    Ok(lanes)
}

/// Knocks at each, some at a time.
pub(super) async fn knock(lanes: Vec<String>, config: &Config, found: &mut Findings) {
    // What is wrong with the certificates has a line of its own.
    let Ok(tls) = tls_config(config.http_ca_file.as_deref()) else { return };
    let (tls, resolver) = (Arc::new(tls), Resolver::new(config.guard.clone(), AT_ONCE));
    if lanes.is_empty() {
        found.ok("destinations", "none is owed a webhook or was sent one lately");
    }
    let knocks = lanes.into_iter().map(|lane| {
        let (tls, resolver) = (tls.clone(), resolver.clone());
        async move {
            let answer = timeout(PATIENCE * 2, handshake(&lane, config, resolver, tls)).await;
            (lane, answer.unwrap_or_else(|_| Err("no answer in time".to_owned())))
        }
    });
    let mut answers: Vec<_> = futures_util::stream::iter(knocks).buffer_unordered(AT_ONCE).collect().await;
    answers.sort();
    for (lane, answer) in answers {
        match answer {
            Ok(how) => found.ok("destinations", format!("{lane}: {how}")),
            Err(why) => found.warn(
                "destinations",
                format!("{lane}: {why}"),
                "its webhooks wait for retries: ask the buyer; `taskbell lanes list` says for how long",
            ),
        }
    }
}

async fn handshake(
    lane: &str,
    config: &Config,
    resolver: Resolver,
    tls: Arc<ClientConfig>,
) -> Result<String, String> {
    let url = Url::parse(lane).map_err(|_| "is no destination".to_owned())?;
    config.guard.check_url(&url).map_err(|refused| refused.to_string())?;
    let port = url.port_or_known_default().unwrap_or(443);
    let addresses: Vec<IpAddr> = match url.host() {
        Some(Host::Ipv4(ip)) => vec![ip.into()],
        Some(Host::Ipv6(ip)) => vec![ip.into()],
        Some(Host::Domain(name)) => {
            let name: Name = name.parse().map_err(|_| "has a name that cannot be looked up".to_owned())?;
            let resolved = resolver.resolve(name).await.map_err(|error| error.to_string())?;
            resolved.map(|address| address.ip()).collect()
        }
        None => Vec::new(),
    };
    let name = (url.scheme() == "https")
        .then(|| ServerName::try_from(url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned()))
        .transpose()
        .map_err(|_| "has a name that no certificate can carry".to_owned())?;
    let knocked = tokio::task::spawn_blocking(move || {
        let mut last = "has no address".to_owned();
        for ip in addresses {
            match connect(SocketAddr::new(ip, port), name.clone(), tls.clone()) {
                Ok(how) => return Ok(how),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    });
    knocked.await.map_err(|error| error.to_string())?
}

/// Blocks, for as long as [`PATIENCE`] at each step.
fn connect(
    address: SocketAddr,
    name: Option<ServerName<'static>>,
    tls: Arc<ClientConfig>,
) -> std::io::Result<String> {
    let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    let Some(name) = name else { return Ok("connected, without TLS".to_owned()) };
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let mut connection = ClientConnection::new(tls, name).map_err(std::io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
        _ => "TLS 1.2",
    };
    Ok(format!("{version}, its certificate is trusted"))
}

const DESTINATIONS: &str = include_str!("destinations.sql");
const SDK_DESTINATIONS: &str = include_str!("sdk_destinations.sql");
/// Of each outbox.
const MOST: i64 = 20;
const AT_ONCE: usize = 8;
/// For the connection, and as long again for the handshake.
const PATIENCE: Duration = Duration::from_secs(4);
