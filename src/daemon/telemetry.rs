//! Logs and the process-wide set-up that must happen once.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt;

use super::config::{Log, LogFormat};

/// Installs the TLS provider. First thing in `main`.
pub fn install_crypto() {
    // Err means that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Reads a filter such as `info` or `taskbell=debug,warn`.
///
/// # Errors
/// It is malformed.
pub fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(directives)
}

/// Starts logging to standard error.
///
/// # Errors
/// The filter is malformed.
pub fn start_logging(log: &Log) -> Result<(), ParseError> {
    let filter = filter(&log.filter)?;
    let text = match log.format {
        LogFormat::Auto => stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let builder = fmt().with_env_filter(filter).with_writer(stderr).with_ansi(stderr().is_terminal());
    // Err means that a subscriber is installed already, by a test or an embedding program.
    let started = if text {
        builder.compact().try_init().map_err(drop)
    } else {
        builder.json().flatten_event(true).try_init().map_err(drop)
    };
    if started.is_ok() {
        log_panics();
    }
    Ok(())
}

/// A panic ends one attempt, not the daemon, so it has to be seen: as an event like any other,
/// not as lines that a collector of JSON cannot read.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref().map(String::as_str));
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(
            panic = text.unwrap_or_default(),
            location = panic.location().map(tracing::field::display),
            thread = std::thread::current().name(),
            backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured)
                .then(|| tracing::field::display(&backtrace)),
            "panicked"
        );
    }));
}
