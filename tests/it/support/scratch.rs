//! Directories that the database's server can use too.

use std::os::unix::fs::PermissionsExt;

use taskbell::daemon::embedded::usable_directory;
use tempfile::TempDir;

/// A new directory that the server's user can reach, as root too.
pub fn scratch(prefix: &str) -> TempDir {
    let wanted = std::env::temp_dir();
    let usable = usable_directory(&wanted.join("taskbell-test-000000")).unwrap();
    let parent = if usable.starts_with(wanted.canonicalize().unwrap()) { wanted } else { "/tmp".into() };
    let open = std::fs::Permissions::from_mode(0o755);
    tempfile::Builder::new().prefix(prefix).permissions(open).tempdir_in(parent).unwrap()
}
