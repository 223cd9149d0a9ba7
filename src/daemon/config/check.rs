//! What every check of a value has in common: a problem is kept under the name of its key.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::task::TaskType;

/// Collects what is wrong, by key.
pub(super) struct Check<'a> {
    pub(super) problems: &'a mut Vec<String>,
}

impl Check<'_> {
    pub(super) fn refuse(&mut self, wrong: bool, key: &str, problem: &str) {
        if wrong {
            self.problems.push(format!("{key}: {problem}"));
        }
    }

    /// A secret that is given as it is or in a file, or not at all. What is empty says nothing.
    pub(super) fn secret(
        &mut self,
        key: &str,
        given: &SecretString,
        file: Option<PathBuf>,
    ) -> Option<SecretString> {
        let Some(file) = file else { return Some(given.clone()).filter(|secret| !is_empty(secret)) };
        self.refuse(!is_empty(given), &format!("{key}, {key}_file"), "give one of them, not both");
        let text = std::fs::read_to_string(&file);
        let problem = match &text {
            Ok(text) if text.trim().is_empty() => Some(format!("{} is empty", file.display())),
            Ok(_) => None,
            Err(error) => Some(format!("{} cannot be read: {error}", file.display())),
        };
        if let Some(problem) = problem {
            self.refuse(true, &format!("{key}_file"), &problem);
        }
        Some(SecretString::from(text.ok()?.trim())).filter(|secret| !is_empty(secret))
    }

    /// A duration inside its range. One that was refused takes part in no further check.
    pub(super) fn time(
        &mut self,
        key: &str,
        text: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let read = humantime::parse_duration(text).ok();
        let inside = read.filter(|duration| range.contains(duration));
        let (least, most) =
            (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
        match (read, inside) {
            (None, _) => self.refuse(true, key, "must be a duration, such as \"30s\", \"5m\" or \"24h\""),
            (_, None) => self.refuse(true, key, &format!("must be from {least} to {most}")),
            _ => {}
        }
        inside
    }

    /// A duration for each of some task types.
    pub(super) fn by_type(
        &mut self,
        section: &str,
        typed: &BTreeMap<String, String>,
        task_types: &[String],
    ) -> BTreeMap<String, Duration> {
        let limits = typed.iter().filter_map(|(name, text)| {
            let key = format!("{section}.{name}");
            let known =
                TaskType::parse(name.as_str()).is_ok_and(|kind| kind.is_known()) || task_types.contains(name);
            self.refuse(!known, &key, "is no AdCP task type; add it to metrics.task_types if it is yours");
            Some((name.clone(), self.time(&key, text, SECOND..=DAY * 3650)?))
        });
        limits.collect()
    }

    pub(super) fn files(&mut self, key: &str, files: &[PathBuf]) {
        let empty = files.iter().any(|file| file.as_os_str().is_empty());
        self.refuse(empty, key, "must not have an empty path");
    }

    pub(super) fn count(&mut self, key: &str, count: u64, range: RangeInclusive<u64>) -> usize {
        let problem = format!("must be from {} to {}", range.start(), range.end());
        self.refuse(!range.contains(&count), key, &problem);
        usize::try_from(count).unwrap_or(usize::MAX)
    }
}

/// Whether a secret says nothing.
pub(super) fn is_empty(secret: &SecretString) -> bool {
    secret.expose_secret().is_empty()
}

pub(super) const TENTH: Duration = Duration::from_millis(100);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);
