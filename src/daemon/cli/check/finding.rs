//! What a check found, how bad it is, and what to do about it.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::super::escaped;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// As it should be.
    Ok,
    /// Webhooks go out, but not for ever, or not as quickly as they could.
    Warn,
    /// Webhooks are not delivered, or not all of them.
    Fail,
}

/// One line.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) severity: Severity,
    pub(super) says: String,
    /// What to do; null where all is well.
    pub(super) remedy: Option<String>,
}

/// Everything that was found so far.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn ok(&mut self, check: &'static str, says: impl Into<String>) {
        self.add(check, Severity::Ok, says, None);
    }

    pub(super) fn warn(&mut self, check: &'static str, says: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, Severity::Warn, says, Some(remedy.into()));
    }

    pub(super) fn fail(&mut self, check: &'static str, says: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, Severity::Fail, says, Some(remedy.into()));
    }

    /// A failure whose text says itself what to do.
    pub(super) fn broken(&mut self, check: &'static str, says: impl Into<String>) {
        self.add(check, Severity::Fail, says, None);
    }

    fn add(
        &mut self,
        check: &'static str,
        severity: Severity,
        says: impl Into<String>,
        remedy: Option<String>,
    ) {
        self.0.push(Finding { check, severity, says: says.into(), remedy });
    }

    /// The worst of them.
    pub(super) fn worst(&self) -> Severity {
        self.0.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }

    /// One JSON document, or a line each.
    pub(super) fn print(&self, json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            return writeln!(out, "{}", serde_json::to_string(&self.0)?);
        }
        for Finding { check, severity, says, remedy } in &self.0 {
            let word = match severity {
                Severity::Ok => "ok  ",
                Severity::Warn => "WARN",
                Severity::Fail => "FAIL",
            };
            let line = remedy.as_ref().map_or(says.clone(), |remedy| format!("{says}; {remedy}"));
            writeln!(out, "{word}  {check:<14} {}", escaped(&line))?;
        }
        Ok(())
    }
}

/// A span as people say it.
pub(super) fn for_people(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds.max(0.0) as u64)).to_string()
}
