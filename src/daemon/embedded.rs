//! A private PostgreSQL from the binaries that the machine has: for `taskbell dev` and the tests.
//!
//! The server runs under a small shell that waits for its standard input to close: when we end,
//! however we end, the kernel closes the pipe and the shell stops the server. As root the server
//! runs as `postgres` or `nobody`, because PostgreSQL refuses root.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How to run the server.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Everything of it: data, socket, log. Made if absent.
    pub directory: PathBuf,
    /// Real durability, or none at all, for tests.
    pub durable: bool,
    /// Also listen on 127.0.0.1 here.
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
        let user = server_user()?;
        let directory = &options.directory;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(EmbeddedError::io(directory))?;
        let directory = &fs::canonicalize(directory).map_err(EmbeddedError::io(directory))?;
        if directory.as_os_str().len() > MAX_SOCKET_DIRECTORY {
            return Err(EmbeddedError::PathTooLong(directory.clone()));
        }
        if let Some((uid, gid)) = user {
            chown(directory, Some(uid), Some(gid)).map_err(EmbeddedError::io(directory))?;
        }
        let command = |program: &str| {
            let mut command = Command::new(bin.join(program));
            command.current_dir(directory).env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin");
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        let data = directory.join("data");
        if data.join("PG_VERSION").exists() {
            check_version(
                &data,
                &command("postgres").arg("--version").output().map_err(EmbeddedError::io(&bin))?.stdout,
            )?;
            stop_orphan(&data)?;
        } else {
            let output = command("initdb")
                .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
                .arg(&data)
                .output()
                .map_err(EmbeddedError::io(&bin))?;
            if !output.status.success() {
                return Err(EmbeddedError::Init(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
            }
        }
        let port = options.port.unwrap_or(5432);
        let listen = if options.port.is_some() { "127.0.0.1" } else { "" };
        let mut settings = vec![
            format!("listen_addresses={listen}"),
            format!("port={port}"),
            format!("unix_socket_directories={}", directory.display()),
        ];
        if !options.durable {
            settings
                .extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"].map(str::to_owned));
        }
        settings.extend(options.settings.iter().cloned());
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(SHELL).arg("sh").arg(directory).arg(if options.remove_after {
            "remove"
        } else {
            "keep"
        });
        shell.arg(bin.join("postgres")).arg("-D").arg(&data);
        for setting in &settings {
            shell.arg("-c").arg(setting);
        }
        shell.current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Out of the terminal's process group: Ctrl-C is for us, and we stop the server.
        shell.process_group(0);
        if let Some((uid, gid)) = user {
            shell.uid(uid).gid(gid);
        }
        let mut shell = shell.spawn().map_err(EmbeddedError::io(directory))?;
        wait_ready(&mut shell, &data, directory)?;
        Ok(Self { shell, socket: directory.clone(), port })
    }

    /// The connection string over the Unix socket.
    #[must_use]
    pub fn dsn(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.socket.display(), self.port)
    }

    /// Stops the server and waits for it; what was not committed is rolled back.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

impl Drop for EmbeddedPostgres {
    fn drop(&mut self) {
        self.end();
    }
}

/// A directory that the server can use in place of `wanted`, if it cannot use that one: as root
/// the server is another user, who may not enter `/root`; and a socket's path must be short.
///
/// # Errors
/// [`EmbeddedError::NoUser`] when there is nobody to run the server as.
pub fn usable_directory(wanted: &Path) -> Result<PathBuf, EmbeddedError> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::os::unix::fs::PermissionsExt;
    let absolute = std::path::absolute(wanted).map_err(EmbeddedError::io(wanted))?;
    let others_may_enter =
        |path: &Path| fs::metadata(path).map_or(true, |metadata| metadata.permissions().mode() & 0o001 != 0);
    let parents = absolute.ancestors().skip(1);
    let reachable = server_user()?.is_none() || parents.into_iter().all(others_may_enter);
    if reachable && absolute.as_os_str().len() <= MAX_SOCKET_DIRECTORY {
        return Ok(absolute);
    }
    let mut hasher = DefaultHasher::new();
    absolute.hash(&mut hasher);
    Ok(Path::new("/var/tmp").join(format!("taskbell-{:016x}", hasher.finish())))
}

/// Where the server's programs are: `PG_BIN`, what `pg_config` says, or where distributions put them.
fn find_binaries() -> Option<PathBuf> {
    let named = std::env::var_os("PG_BIN").map(PathBuf::from);
    if let Some(bin) = named {
        return has_server(&bin).then_some(bin);
    }
    let mut found: Vec<PathBuf> = ROOTS
        .iter()
        .flat_map(|(root, below)| {
            let entries = fs::read_dir(root).into_iter().flatten().flatten();
            entries.map(move |entry| entry.path().join(below))
        })
        .chain(FIXED.iter().map(PathBuf::from))
        .filter(|bin| has_server(bin))
        .collect();
    found.sort_by_key(|bin| (version_in(bin), bin.clone()));
    found.pop().or_else(|| {
        let output = Command::new("pg_config").arg("--bindir").output().ok()?;
        let bin = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        has_server(&bin).then_some(bin)
    })
}

fn has_server(bin: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|program| bin.join(program).exists())
}

/// The first number in a path: `/usr/lib/postgresql/15/bin` is of version 15.
fn version_in(bin: &Path) -> u32 {
    let text = bin.to_string_lossy();
    let digits = text.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Whom the server runs as: nobody else unless we are root.
fn server_user() -> Result<Option<(u32, u32)>, EmbeddedError> {
    let id = |arguments: &[&str]| -> Option<u32> {
        let output =
            Command::new("id").args(arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    if id(&["-u"]) != Some(0) {
        return Ok(None);
    }
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| Some((id(&["-u", name])?, id(&["-g", name])?)))
        .map(Some)
        .ok_or(EmbeddedError::NoUser)
}

fn check_version(data: &Path, printed: &[u8]) -> Result<(), EmbeddedError> {
    let file = data.join("PG_VERSION");
    let kept = fs::read_to_string(&file).map_err(EmbeddedError::io(&file))?.trim().to_owned();
    let printed = String::from_utf8_lossy(printed);
    let server = printed.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let server = server.unwrap_or_default().to_owned();
    match server.split(|c: char| !c.is_ascii_digit()).next() == Some(kept.as_str()) {
        true => Ok(()),
        false => Err(EmbeddedError::OtherVersion { kept, server }),
    }
}

/// A server that outlived its shell (a machine that was frozen, a shell that was killed).
fn stop_orphan(data: &Path) -> Result<(), EmbeddedError> {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else { return Ok(()) };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else {
        return Ok(());
    };
    let alive =
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("postgres"));
    if !alive {
        return Ok(());
    }
    let _ = Command::new("kill").args(["-INT", &pid.to_string()]).status();
    let began = Instant::now();
    while data.join("postmaster.pid").exists() {
        if began.elapsed() > PATIENCE {
            return Err(EmbeddedError::Orphan { pid });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn wait_ready(shell: &mut Child, data: &Path, directory: &Path) -> Result<(), EmbeddedError> {
    let began = Instant::now();
    loop {
        // Line 8 of the lock file says how far the start has come.
        let pid_file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        if pid_file.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
            return Ok(());
        }
        let ended = shell.try_wait().map_err(EmbeddedError::io(directory))?.is_some();
        if ended || began.elapsed() > PATIENCE {
            let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            return Err(EmbeddedError::Start(tail.into_iter().rev().collect::<Vec<_>>().join("\n")));
        }
        std::thread::sleep(POLL);
    }
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
    /// A server from an earlier run does not stop.
    #[error("a server from an earlier run (pid {pid}) does not stop: end it and try again")]
    Orphan {
        /// Its process.
        pid: u32,
    },
    /// `initdb` failed.
    #[error("initdb failed: {0}")]
    Init(String),
    /// The server did not start.
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

/// `$1` the directory, `$2` whether to remove it afterwards, then the server and its arguments.
const SHELL: &str = r#"
directory=$1; after=$2; shift 2
"$@" >"$directory/log" 2>&1 </dev/null &
server=$!
trap "" INT TERM HUP
cat >/dev/null
kill -INT $server 2>/dev/null
wait $server
if [ "$after" = remove ]; then rm -rf "$directory"/* ; cd /; rmdir "$directory" 2>/dev/null; fi
"#;
/// 107 bytes for the socket's whole path, of which `/.s.PGSQL.65535` takes the end.
const MAX_SOCKET_DIRECTORY: usize = 90;
const ROOTS: [(&str, &str); 5] = [
    ("/usr/lib/postgresql", "bin"),
    ("/opt/homebrew/opt", "bin"),
    ("/usr/local/opt", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "bin"),
    ("/usr", "bin"),
];
const FIXED: [&str; 3] = ["/usr/bin", "/usr/local/pgsql/bin", "/usr/local/bin"];
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
