//! systemd's journal: whether our errors go there, and a layer that speaks its own protocol, so that
//! priorities and fields arrive as such.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use tracing_journald::{Layer, Priority, PriorityMappings};

/// Whether standard error is the journal: systemd names the stream's device and inode in
/// `JOURNAL_STREAM` (systemd.exec(5)), which children inherit though their output may go elsewhere.
pub(super) fn has_stderr() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let ours = io::stderr().as_fd().try_clone_to_owned().and_then(|stderr| File::from(stderr).metadata());
    ours.is_ok_and(|ours| stream == format!("{}:{}", ours.dev(), ours.ino()))
}

/// Events as journal entries. Our fields are `TASKBELL_ROW_ID` and the like.
///
/// # Errors
/// Nobody listens on the journal's socket.
pub(super) fn layer() -> io::Result<Layer> {
    let priorities =
        PriorityMappings { info: Priority::Informational, debug: Priority::Debug, ..PriorityMappings::new() };
    Ok(Layer::new()?
        .with_syslog_identifier("taskbell".to_owned())
        .with_field_prefix(Some("TASKBELL".to_owned()))
        .with_priority_mappings(priorities))
}
