//! Where things are: the server's programs, its user, and a directory that it can use.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::EmbeddedError;

/// A directory that the server can use in place of `wanted`, if it cannot use that one: as root
/// the server is another user, who may not enter `/root`; and a socket's path must be short and
/// without a comma. The same place for the same `wanted`, in every run.
///
/// # Errors
/// [`EmbeddedError::NoUser`] when there is nobody to run the server as.
pub fn usable_directory(wanted: &Path) -> Result<PathBuf, EmbeddedError> {
    let user = ServerUser::find()?;
    let absolute = resolve(&std::path::absolute(wanted).map_err(EmbeddedError::io(wanted))?);
    let others_may_enter =
        |path: &Path| fs::metadata(path).map_or(true, |metadata| metadata.permissions().mode() & 0o001 != 0);
    let reachable = user.becomes.is_none() || absolute.ancestors().skip(1).all(others_may_enter);
    let text = absolute.to_string_lossy();
    if reachable && text.len() <= MAX_SOCKET_DIRECTORY && !text.contains(',') {
        return Ok(absolute);
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let name: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    // Root has a place where nobody else can put something first.
    let parent = if user.becomes.is_some() { "/var/lib" } else { "/var/tmp" };
    Ok(Path::new(parent).join(format!("taskbell-{name}")))
}

/// Follows the links in what exists of a path.
fn resolve(path: &Path) -> PathBuf {
    for existing in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (fs::canonicalize(existing), path.strip_prefix(existing)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

/// Refuses a directory that holds anything but what a server of ours puts there, or that neither
/// we nor the server's user own.
pub(super) fn require_ours(directory: &Path, user: &ServerUser) -> Result<(), EmbeddedError> {
    let metadata = fs::metadata(directory).map_err(EmbeddedError::io(directory))?;
    let owned = metadata.uid() == user.me || user.becomes.is_some_and(|(uid, _)| uid == metadata.uid());
    let not_ours = || EmbeddedError::NotOurs(directory.to_owned());
    if !metadata.is_dir() || !owned {
        return Err(not_ours());
    }
    for entry in fs::read_dir(directory).map_err(EmbeddedError::io(directory))? {
        let name = entry.map_err(EmbeddedError::io(directory))?.file_name();
        let ours = match name.to_str() {
            Some("data") => directory.join("data/PG_VERSION").exists(),
            Some("data.new" | "log") => true,
            Some(name) => name.starts_with(".s.PGSQL."),
            None => false,
        };
        if !ours {
            return Err(not_ours());
        }
    }
    Ok(())
}

/// Who we are, and whom the server runs as: nobody else unless we are root.
pub(super) struct ServerUser {
    me: u32,
    /// User and group.
    pub(super) becomes: Option<(u32, u32)>,
}

impl ServerUser {
    pub(super) fn find() -> Result<Self, EmbeddedError> {
        let id = |arguments: &[&str]| -> Option<u32> {
            let output = Command::new("id").args(arguments).output().ok()?;
            String::from_utf8(output.stdout).ok()?.trim().parse().ok()
        };
        let me = id(&["-u"]).ok_or(EmbeddedError::NoUser)?;
        if me != 0 {
            return Ok(Self { me, becomes: None });
        }
        let becomes =
            ["postgres", "nobody"].iter().find_map(|name| Some((id(&["-u", name])?, id(&["-g", name])?)));
        Ok(Self { me, becomes: Some(becomes.ok_or(EmbeddedError::NoUser)?) })
    }
}

/// Where the server's programs are: `PG_BIN`, what `pg_config` says, or where distributions put
/// them, the newest first.
#[must_use]
pub fn find_binaries() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("PG_BIN").filter(|named| !named.is_empty()) {
        return std::path::absolute(named).ok().filter(|bin| has_server(bin));
    }
    let configured = Command::new("pg_config").arg("--bindir").output().ok();
    let configured = configured.and_then(|output| String::from_utf8(output.stdout).ok());
    if let Some(bin) = configured.map(|text| PathBuf::from(text.trim())).filter(|bin| has_server(bin)) {
        return Some(bin);
    }
    let below = |root: &&str| {
        fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"))
    };
    let found = ROOTS.iter().flat_map(below).chain(FIXED.iter().map(PathBuf::from));
    found.filter(|bin| has_server(bin)).max_by_key(|bin| (version_in(bin), bin.clone()))
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

/// 107 bytes for the socket's whole path, of which `/.s.PGSQL.65535.lock` takes the end.
pub(super) const MAX_SOCKET_DIRECTORY: usize = 86;
/// Each of their folders may have a `bin`: Debian; Homebrew on ARM and Intel; Postgres.app;
/// `/usr/pgsql-17` of the PGDG packages.
const ROOTS: [&str; 5] = [
    "/usr/lib/postgresql",
    "/opt/homebrew/opt",
    "/usr/local/opt",
    "/Applications/Postgres.app/Contents/Versions",
    "/usr",
];
/// Fedora and Arch; a build from source.
const FIXED: [&str; 3] = ["/usr/bin", "/usr/local/pgsql/bin", "/usr/local/bin"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_told_by_its_path() {
        for (path, expected) in [
            ("/usr/lib/postgresql/15/bin", 15),
            ("/usr/pgsql-17/bin", 17),
            ("/opt/homebrew/opt/postgresql@16/bin", 16),
            ("/usr/bin", 0),
        ] {
            assert_eq!(version_in(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_path_that_no_socket_fits_in_has_one_steady_replacement() {
        let long = PathBuf::from("/tmp").join("x".repeat(120));
        let replacement = usable_directory(&long).unwrap();
        assert_ne!(replacement, long);
        assert!(replacement.as_os_str().len() <= MAX_SOCKET_DIRECTORY);
        assert_eq!(replacement, usable_directory(&long).unwrap());
        assert_ne!(replacement, usable_directory(&long.join("y")).unwrap());
        assert_ne!(usable_directory(Path::new("/tmp/a,b")).unwrap(), Path::new("/tmp/a,b"));
    }
}
