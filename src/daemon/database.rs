//! Connections: the pool for claims and settles, and single ones for listener and doorbell.
//!
//! Our own connections do not wait for an fsync: a claim or an acknowledgement that a crash
//! forgets means a repeated delivery under the same key, and what is owed was written durably
//! by the seller.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::BuilderVerifierExt;
use secrecy::ExposeSecret;
use tokio::time::timeout;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::config::Database;
use super::dsn::{Dsn, DsnError};
use crate::listener::{Connect, ConnectError, Session};

/// How to connect, ready to be used any number of times.
#[derive(Clone)]
pub struct Connector {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    max_connections: usize,
}

impl Connector {
    /// Understands the connection string.
    ///
    /// # Errors
    /// [`DatabaseError`], which never repeats the connection string.
    pub fn new(database: &Database) -> Result<Self, DatabaseError> {
        let url = database.url.as_ref().ok_or(DatabaseError::NoUrl)?;
        let Dsn { mut config, ca_file } = Dsn::parse(url.expose_secret())?;
        let statement_timeout = database.statement_timeout.as_millis();
        let own = format!("{SETTINGS} -c statement_timeout={statement_timeout} {LET_GO}");
        let options = config.get_options().map_or_else(|| own.clone(), |theirs| format!("{own} {theirs}"));
        config
            .options(options)
            .application_name("taskbell")
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives(true)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .tcp_user_timeout(UNACKNOWLEDGED);
        let ca_file = database.ca_file.clone().or(ca_file);
        let tls = tls_config(ca_file.as_deref())?;
        Ok(Self { config, tls: MakeRustlsConnect::new(tls), max_connections: database.max_connections })
    }

    /// The same connections, but with commits that wait for the disk: for whatever writes on
    /// the seller's behalf, where a forgotten commit would be a lost one.
    #[must_use]
    pub fn durable(&self) -> Self {
        let mut config = self.config.clone();
        let options = config.get_options().unwrap_or_default().replace("-c synchronous_commit=off", "");
        config.options(options);
        Self { config, ..self.clone() }
    }

    /// A pool with one connection, whose commits wait for the disk.
    ///
    /// # Errors
    /// As [`Connector::pool`].
    pub fn durable_pool(&self) -> Result<Pool, DatabaseError> {
        let durable = self.durable();
        durable.pool_of(durable.config.clone(), 1)
    }

    /// One connection outside the pool.
    ///
    /// # Errors
    /// [`ConnectError`] when the server does not answer in time or refuses.
    pub async fn connect(&self) -> Result<Session, ConnectError> {
        match timeout(self.patience(), self.config.connect(self.tls.clone())).await {
            Ok(Ok((client, connection))) => Ok(Session::new(client, connection)),
            Ok(Err(error)) => Err(ConnectError(explain(&error))),
            Err(_) => Err(ConnectError("the server did not answer in time".to_owned())),
        }
    }

    /// One connection whose messages nobody wants; it closes when the client is dropped.
    ///
    /// # Errors
    /// As [`Connector::connect`].
    pub async fn client(&self) -> Result<tokio_postgres::Client, ConnectError> {
        use futures_util::StreamExt;
        let Session { client, mut messages } = self.connect().await?;
        tokio::spawn(async move { while messages.next().await.is_some() {} });
        Ok(client)
    }

    /// For [`crate::listener`], which opens connections again and again.
    #[must_use]
    pub fn handle(&self) -> Connect {
        let this = self.clone();
        Arc::new(move || {
            let this = this.clone();
            Box::pin(async move { this.connect().await })
        })
    }

    /// The pool for claims and settles, which opens connections when they are needed.
    ///
    /// # Errors
    /// [`DatabaseError::Pool`] when it cannot be built.
    pub fn pool(&self) -> Result<Pool, DatabaseError> {
        let mut config = self.config.clone();
        let options = format!("{BY_INDEX} {}", config.get_options().unwrap_or_default());
        config.options(options);
        self.pool_of(config, self.max_connections)
    }

    fn pool_of(&self, config: tokio_postgres::Config, connections: usize) -> Result<Pool, DatabaseError> {
        let recycle = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        Pool::builder(Manager::from_config(config, self.tls.clone(), recycle))
            .max_size(connections)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(self.patience()))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|_| DatabaseError::Pool)
    }

    /// For the whole way to a ready session. Hosts are tried one after the other: a dead one
    /// must not take the time of the one that took over.
    fn patience(&self) -> Duration {
        let hosts = self.config.get_hosts().len().max(self.config.get_hostaddrs().len()).max(1);
        CONNECT_TIMEOUT * u32::try_from(hosts + 1).unwrap_or(u32::MAX)
    }
}

/// TLS 1.2 and later with the platform's roots, and those of a file beside them.
///
/// # Errors
/// [`DatabaseError::CaFile`] when the file cannot be read; [`DatabaseError::Roots`] when the
/// platform has no certificates.
pub fn tls_config(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, DatabaseError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|_| DatabaseError::Roots)?;
    let config = match ca_file {
        None => builder.with_platform_verifier().map_err(|_| DatabaseError::Roots)?.with_no_client_auth(),
        Some(path) => {
            let unreadable = || DatabaseError::CaFile(path.display().to_string());
            let roots = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|_| unreadable())?;
            if roots.is_empty() {
                return Err(unreadable());
            }
            let verifier = rustls_platform_verifier::Verifier::new_with_extra_roots(roots, provider)
                .map_err(|_| DatabaseError::Roots)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
        }
    };
    Ok(config)
}

/// `tokio_postgres::Error` prints only its kind; this says what the server said, and what can
/// be done where we know it.
#[must_use]
pub fn explain(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let ours = db.message().starts_with(REFUSED_OPTIONS).then_some(POOLER_OPTIONS);
        return match db.hint().or(ours) {
            Some(hint) => format!("{} ({hint})", db.message()),
            None => db.message().to_owned(),
        };
    }
    let causes = || std::iter::successors(Some(error as &(dyn Error + 'static)), |error| (*error).source());
    let text = causes().map(ToString::to_string).collect::<Vec<_>>().join(": ");
    if causes().any(distrusts_certificate) {
        format!("{text} ({DISTRUST})")
    } else if causes().any(wants_a_primary) {
        format!("{text} ({NO_PRIMARY})")
    } else {
        text
    }
}

/// Whether `target_session_attrs=read-write` was asked for in vain: the driver's own refusal, which
/// comes from no call of the system.
fn wants_a_primary(error: &(dyn Error + 'static)) -> bool {
    let refused = error.downcast_ref::<std::io::Error>();
    refused.is_some_and(|error| {
        error.kind() == std::io::ErrorKind::PermissionDenied && error.raw_os_error().is_none()
    })
}

/// Whether TLS ended at the server's certificate. An `io::Error` hides what it carries from
/// `source`.
fn distrusts_certificate(error: &(dyn Error + 'static)) -> bool {
    let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let tls = match inside {
        Some(inside) => inside.downcast_ref::<rustls::Error>(),
        None => error.downcast_ref::<rustls::Error>(),
    };
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

/// Why there is no way to connect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// Nobody said where.
    #[error("no database: set database.url, database.url_file or DATABASE_URL")]
    NoUrl,
    /// Not a connection string.
    #[error("database.url {0}")]
    Url(#[from] DsnError),
    /// A file of certificates cannot be used.
    #[error("{0}: no PEM certificates can be read from it")]
    CaFile(String),
    /// No trust roots.
    #[error("the system has no trusted certificates: install ca-certificates")]
    Roots,
    /// The pool.
    #[error("the connection pool cannot be built")]
    Pool,
}

/// - Commits do not wait for the disk.
/// - Our statements are prepared and their best plan does not depend on their parameters: planning one anew would
///   cost as much as running it.
/// - Counting a backlog for a gauge leaves the other cores to others.
const SETTINGS: &str = "-c synchronous_commit=off -c plan_cache_mode=force_generic_plan -c jit=off \
                        -c max_parallel_workers_per_gather=0";
/// The statements on the outbox are made for an index, and read it in its order. The outbox is empty at times, and is so to
/// PostgreSQL's statistics while a backlog comes in or a held snapshot keeps what is dead: planned then, a claim
/// reads the whole table, or sorts all of it, once for each place; and goes on so for as long as the plan is kept.
const BY_INDEX: &str = "-c enable_seqscan=off -c enable_bitmapscan=off";
/// So that the server, too, notices within half a minute that we vanished: what a vanished
/// session holds (row locks, the doorbell's lock) would otherwise be held for hours.
const LET_GO: &str = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 \
                      -c tcp_user_timeout=20000 -c idle_in_transaction_session_timeout=60000";
/// The certificate is verified even where libpq's default would not ask.
const DISTRUST: &str = "name the CA's file in database.ca_file, or add sslmode=disable where the way to the \
                        server is private";
/// The host that was tried last; the driver keeps no other's answer.
const NO_PRIMARY: &str = "a standby, or read-only: no host of database.url takes writes; promote one, or wait \
                          for the failover";
/// PgBouncer has one error code for whatever it refuses itself: only the text tells.
const REFUSED_OPTIONS: &str = "unsupported startup parameter";
const POOLER_OPTIONS: &str = "a pooler refuses the settings of our sessions: connect past it, or add `options` to \
                              its ignore_startup_parameters and set them for the role; `taskbell check` says which";
/// For one TCP connection; as long again for TLS and authentication.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// With these a vanished server is noticed after some 11 s on an idle connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_RETRIES: u32 = 3;
/// On a connection that is not idle, where keepalives are silent and the kernel would go on
/// for a quarter of an hour.
const UNACKNOWLEDGED: Duration = Duration::from_secs(11);
