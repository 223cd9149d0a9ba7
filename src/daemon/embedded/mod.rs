//! A private PostgreSQL from the programs that the machine has: for `taskbell dev` and the tests.
//!
//! The server runs under a small shell (`supervise.sh`) whose standard input is a pipe from us:
//! when we end, however we end, the kernel closes the pipe and the shell stops the server. As
//! root the server runs as `postgres` or `nobody`, because PostgreSQL refuses root.
//!
//! **Invariant**: nothing is stopped, taken over or removed that this module did not make. A
//! process is ours when its command line names our data directory, a directory when it holds
//! nothing but what we put there.

mod place;
mod leftover;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use place::{MAX_SOCKET_DIRECTORY, ServerUser};
pub use place::{find_binaries, usable_directory};

/// How to run the server.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Everything of it: data, socket, log. Made if absent; one that holds anything else is refused.
    pub directory: PathBuf,
    /// Real durability, or none at all, for tests.
    pub durable: bool,
    /// Also listen on 127.0.0.1 here, where every user of this machine may connect.
    pub port: Option<u16>,
    /// Remove the directory when the server has stopped.
    pub remove_after: bool,
    /// `name=value` settings.
    pub settings: Vec<String>,
}

/// A running server. Dropping it stops the server.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    shell: Child,
    socket: PathBuf,
    port: u16,
}

impl EmbeddedPostgres {
    /// Starts the server and waits until it takes connections. Blocks: about a second when the
    /// data directory is new, a tenth of one otherwise.
    ///
    /// # Errors
    /// [`EmbeddedError`], which says what to do.
    pub fn start(options: &EmbeddedOptions) -> Result<Self, EmbeddedError> {
        let bin = find_binaries().ok_or(EmbeddedError::NoBinaries)?;
        let user = ServerUser::find()?;
        let directory = &take_directory(&options.directory, &user)?;
        let data = directory.join("data");
        if data.join("PG_VERSION").exists() {
            leftover::check_version(&bin, &data)?;
            leftover::stop(directory, &data)?;
        }
        let lock_file = data.join("postmaster.pid");
        let stale = fs::read_to_string(&lock_file).unwrap_or_default();
        let port = options.port.unwrap_or(5432);
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SUPERVISE, "sh"]).arg(directory);
        shell.arg(if options.remove_after { "remove" } else { "keep" }).arg(&bin);
        for setting in settings(options, directory, port) {
            shell.arg("-c").arg(setting);
        }
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        path.push(":/usr/bin:/bin");
        shell.env_clear().env("LC_ALL", "C").env("PATH", path).current_dir(directory);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Out of the terminal's process group: Ctrl-C is for us, and we stop the server.
        shell.process_group(0);
        if let Some((uid, gid)) = user.becomes {
            shell.uid(uid).gid(gid);
        }
        let shell = shell.spawn().map_err(EmbeddedError::io(directory))?;
        let mut server = Self { shell, socket: directory.clone(), port };
        server.wait_ready(&lock_file, &stale)?;
        Ok(server)
    }

    /// The connection string over the Unix socket.
    #[must_use]
    pub fn dsn(&self, database: &str) -> String {
        let socket = self.socket.display().to_string().replace('\\', "\\\\").replace('\'', "\\'");
        format!("host='{socket}' port={} user=postgres dbname={database}", self.port)
    }

    /// Stops the server and waits for it; what was not committed is rolled back.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }

    /// `stale` is what a killed run left in the lock file, which may say `ready` too.
    fn wait_ready(&mut self, lock_file: &Path, stale: &str) -> Result<(), EmbeddedError> {
        let began = Instant::now();
        loop {
            // Line 8 of the lock file says how far the start has come; of a standby, `standby`.
            let text = fs::read_to_string(lock_file).unwrap_or_default();
            let takes_connections = |line: &str| matches!(line.trim(), "ready" | "standby");
            if text != stale && text.lines().nth(7).is_some_and(takes_connections) {
                return Ok(());
            }
            if self.shell.try_wait().map_err(EmbeddedError::io(lock_file))?.is_some() {
                let mut said = String::new();
                if let Some(mut stdout) = self.shell.stdout.take() {
                    stdout.read_to_string(&mut said).map_err(EmbeddedError::io(lock_file))?;
                }
                return Err(EmbeddedError::Start(said.trim().to_owned()));
            }
            if began.elapsed() > PATIENCE {
                let log = self.socket.join("log");
                return Err(EmbeddedError::Start(format!("nothing for a minute; see {}", log.display())));
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for EmbeddedPostgres {
    fn drop(&mut self) {
        self.end();
    }
}

/// Removes a server's directory and all its data. Blocks.
///
/// # Errors
/// [`EmbeddedError::NotOurs`] when anything else is in it, [`EmbeddedError::InUse`] when a server
/// runs there; nothing is removed then.
pub fn clear(directory: &Path) -> Result<(), EmbeddedError> {
    if !directory.exists() {
        return Ok(());
    }
    let directory = fs::canonicalize(directory).map_err(EmbeddedError::io(directory))?;
    place::require_ours(&directory, &ServerUser::find()?)?;
    leftover::stop(&directory, &directory.join("data"))?;
    fs::remove_dir_all(&directory).map_err(EmbeddedError::io(&directory))
}

/// Makes the directory, or makes sure that it is ours, and gives it to the server's user.
fn take_directory(wanted: &Path, user: &ServerUser) -> Result<PathBuf, EmbeddedError> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(wanted).map_err(EmbeddedError::io(wanted))?;
    let directory = fs::canonicalize(wanted).map_err(EmbeddedError::io(wanted))?;
    if directory.as_os_str().len() > MAX_SOCKET_DIRECTORY {
        return Err(EmbeddedError::PathTooLong(directory));
    }
    place::require_ours(&directory, user)?;
    if let Some((uid, gid)) = user.becomes {
        chown(&directory, Some(uid), Some(gid)).map_err(EmbeddedError::io(&directory))?;
    }
    Ok(directory)
}

fn settings(options: &EmbeddedOptions, directory: &Path, port: u16) -> Vec<String> {
    let mut settings = vec![
        format!("listen_addresses={}", if options.port.is_some() { "127.0.0.1" } else { "" }),
        format!("port={port}"),
        format!("unix_socket_directories=\"{}\"", directory.display().to_string().replace('"', "\"\"")),
        // Whoever connects may run programs as the server's user.
        "unix_socket_permissions=0700".to_owned(),
    ];
    if !options.durable {
        settings.extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"].map(str::to_owned));
    }
    settings.extend(options.settings.iter().cloned());
    settings
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    /// No `initdb` and `postgres` anywhere.
    #[error(
        "no PostgreSQL server is installed here. Install one with\n  \
         Debian, Ubuntu:  sudo apt-get install postgresql\n  \
         Fedora:          sudo dnf install postgresql-server\n  \
         macOS:           brew install postgresql@17\n\
         or say where its programs are (PG_BIN), or use a server that runs already (DATABASE_URL)"
    )]
    NoBinaries,
    /// We are root and there is nobody to run it as.
    #[error("PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody`")]
    NoUser,
    /// The path is too long for a Unix socket in it.
    #[error("{} is too long a path for a Unix socket: choose one of at most {MAX_SOCKET_DIRECTORY} characters", .0.display())]
    PathTooLong(PathBuf),
    /// The directory holds something that we did not put there, or is another user's.
    #[error("{} holds other things than a database of ours, or is another user's: choose another directory", .0.display())]
    NotOurs(PathBuf),
    /// The data was written by another major version.
    #[error(
        "the data there is of PostgreSQL {kept}, the server is {server}: start with --fresh to begin anew"
    )]
    OtherVersion {
        /// The version of the data.
        kept: String,
        /// The version of the server.
        server: String,
    },
    /// Somebody else runs a server on this directory.
    #[error("{} is in use by another run (server {pid}): stop that one, or choose another directory", directory.display())]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// The server's process.
        pid: u32,
    },
    /// A server that was left behind does not stop.
    #[error("a server from an earlier run (pid {pid}) does not stop: end it and try again")]
    Orphan {
        /// Its process.
        pid: u32,
    },
    /// The data could not be made, or the server did not start.
    #[error("PostgreSQL did not start:\n{0}")]
    Start(String),
    /// A file or directory cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl EmbeddedError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path: path.clone(), source }
    }
}

const SUPERVISE: &str = include_str!("supervise.sh");
/// A new database and a recovery both fit in it on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
