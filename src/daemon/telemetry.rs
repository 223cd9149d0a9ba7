//! Logs and the process-wide set-up that must happen once.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

use super::config::{Config, Log, LogFormat};
use super::journal;
#[cfg(feature = "otlp")]
use super::traces;

/// Installs the TLS provider. First thing in `main`.
pub fn install_crypto() {
    // Err means that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Has the cryptography library seed its random numbers, which it does at their first use: the first
/// webhook would wait for it, some 30 ms. Blocks.
pub fn gather_entropy() {
    let mut byte = [0];
    // Err would come back where the number is needed.
    let _ = aws_lc_rs::rand::fill(&mut byte);
}

/// Reads a filter such as `info` or `taskbell=debug,warn`.
///
/// # Errors
/// It is malformed.
pub fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(directives)
}

/// What was started, to be ended when everything else has.
#[must_use]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    exporter: Option<traces::Exporter>,
}

impl Telemetry {
    /// Sends what is still to be sent.
    pub async fn finish(self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = self.exporter {
            exporter.finish().await;
        }
    }
}

/// Starts logging to standard error or to the journal, and sending spans where that is configured.
///
/// # Errors
/// The filter is malformed.
pub fn start(config: &Config) -> Result<Telemetry, ParseError> {
    let filter = filter(&config.log.filter)?;
    let format = chosen_format(&config.log);
    let journal = (format == LogFormat::Journald).then(journal::layer).transpose();
    let no_journal = journal.as_ref().err().map(ToString::to_string);
    let lines = fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal());
    let lines = match (journal, format) {
        (Ok(Some(journal)), _) => journal.boxed(),
        (_, LogFormat::Text) => lines.compact().boxed(),
        _ => lines.json().flatten_event(true).boxed(),
    };
    let subscriber = registry().with(lines.with_filter(filter));
    #[cfg(feature = "otlp")]
    let (spans, exporter) = config.traces.clone().map(traces::start).unzip();
    #[cfg(feature = "otlp")]
    let subscriber = subscriber.with(spans);
    // Err means that a subscriber is installed already, by a test or an embedding program.
    if subscriber.try_init().is_ok() {
        log_panics();
    }
    if let Some(error) = no_journal {
        tracing::warn!(error, "the journal does not listen: logging JSON to standard error");
    }
    Ok(Telemetry {
        #[cfg(feature = "otlp")]
        exporter,
    })
}

fn chosen_format(log: &Log) -> LogFormat {
    match log.format {
        LogFormat::Auto if stderr().is_terminal() => LogFormat::Text,
        LogFormat::Auto if journal::has_stderr() => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Json,
        chosen => chosen,
    }
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
