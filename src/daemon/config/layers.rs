//! File and environment, each held against the reference: same keys, same kinds of value.
//!
//! The reference says which kind each key has, so a variable is never guessed at: a password
//! of `12345` stays text. What does not fit is a problem and is left out, so that the rest can
//! still be checked.

use std::borrow::Cow;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Num, Value};

use super::{DEFAULT_PATH, REFERENCE, Sources};

/// The compiled-in defaults.
pub(super) fn reference() -> Dict {
    Toml::from_str(REFERENCE).unwrap_or_default()
}

/// What file and environment say, the environment first; what is wrong goes to `problems`.
pub(super) fn read(sources: &Sources, problems: &mut Vec<String>) -> Dict {
    let reference = Value::from(reference());
    let mut typed = file(sources, &reference, problems);
    for (name, text) in &sources.environment {
        let Some(name) = name.strip_prefix("TASKBELL_") else { continue };
        if !name.contains("__") {
            if !injected_by_kubernetes(name) {
                problems.push(format!(
                    "TASKBELL_{name}: is no variable of ours; section and key are joined by two underscores, \
                     as in TASKBELL_WORKER__LEASE"
                ));
            }
            continue;
        }
        let key = name.to_ascii_lowercase().replace("__", ".");
        match Kind::of(&reference, &key).map(|kind| (kind, kind.read(text))) {
            Ok((_, Some(value))) => merge(&mut typed, figment::util::nest(&key, value)),
            Ok((kind, None)) => problems.push(format!("TASKBELL_{name}: must be {}", kind.name())),
            Err(unknown) => problems.push(format!("TASKBELL_{name}: {unknown}")),
        }
    }
    typed
}

fn file(sources: &Sources, reference: &Value, problems: &mut Vec<String>) -> Dict {
    let path = sources.file.clone().unwrap_or_else(|| DEFAULT_PATH.into());
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && sources.file.is_none() => {
            return Dict::new();
        }
        Err(error) => {
            problems.push(format!("{} cannot be read: {error}", path.display()));
            return Dict::new();
        }
    };
    match Toml::from_str::<Dict>(&text) {
        Ok(found) => {
            let mut found = found;
            fit(&mut found, "", reference, problems);
            found
        }
        Err(error) => {
            // The parser's own message quotes the line, which may hold a secret.
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            problems.push(format!("{}, line {line}: is not TOML", path.display()));
            Dict::new()
        }
    }
}

/// Takes out of a table what the reference does not have or has as another kind.
fn fit(table: &mut Dict, path: &str, reference: &Value, problems: &mut Vec<String>) {
    table.retain(|name, value| {
        let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let is_section = path == SCOPES || matches!(section(reference, &key), Some(Value::Dict(..)));
        match (is_section, value) {
            (true, Value::Dict(_, inner)) => {
                fit(inner, &key, reference, problems);
                true
            }
            (true, _) => {
                problems.push(format!("{key}: is a section: write [{key}]"));
                false
            }
            (false, value) => match Kind::of(reference, &key) {
                Ok(kind) if kind.fits(value) => true,
                Ok(kind) => {
                    problems.push(format!("{key}: must be {}", kind.name()));
                    false
                }
                Err(unknown) => {
                    problems.push(format!("{key}: {unknown}"));
                    false
                }
            },
        }
    });
}

fn merge(into: &mut Dict, value: Value) {
    let Value::Dict(_, from) = value else { return };
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(Value::Dict(_, inner)), value @ Value::Dict(..)) => merge(inner, value),
            (_, value) => drop(into.insert(name, value)),
        }
    }
}

/// What a pod finds in its environment for every service whose name begins with `taskbell`:
/// `PORT`, `SERVICE_HOST`, `PORT_9464_TCP_ADDR`, and the same behind the rest of the name.
fn injected_by_kubernetes(name: &str) -> bool {
    let words: Vec<&str> = name.split('_').collect();
    words.windows(2).any(|pair| matches!(pair, ["SERVICE", "HOST" | "PORT"]))
        || words.last() == Some(&"PORT")
        || words.windows(3).any(|three| {
            matches!(three, ["PORT", number, "TCP" | "UDP" | "SCTP"] if number.parse::<u16>().is_ok())
        })
}

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Flag,
    Count,
    Number,
    Texts,
    Counts,
    Numbers,
}

impl Kind {
    /// The kind of the reference's value; why not, for a key that it does not have.
    fn of(reference: &Value, key: &str) -> Result<Self, String> {
        if BY_TYPE.iter().any(|section| key.strip_prefix(section).is_some_and(|name| !name.is_empty())) {
            return Ok(Self::Text);
        }
        Ok(match section(reference, &of_scope(key)) {
            Some(Value::String(..) | Value::Char(..)) => Self::Text,
            Some(Value::Bool(..)) => Self::Flag,
            Some(Value::Num(_, Num::F32(_) | Num::F64(_))) => Self::Number,
            Some(Value::Num(..)) => Self::Count,
            Some(Value::Array(..)) => match key {
                "guard.ports" => Self::Counts,
                "metrics.task_buckets" => Self::Numbers,
                _ => Self::Texts,
            },
            Some(Value::Dict(..) | Value::Empty(..)) => return Err("is a section, not a key".to_owned()),
            None => {
                let parent = key.rsplit_once('.').map_or("", |(parent, _)| parent);
                return Err(match section(reference, parent) {
                    Some(Value::Dict(_, known)) => {
                        let known: Vec<&str> = known.keys().map(String::as_str).collect();
                        format!("there is no such key; known here are {}", known.join(", "))
                    }
                    _ => "there is no such key, nor such a section".to_owned(),
                });
            }
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Flag => "true or false",
            Self::Count => "a whole number, 0 or more",
            Self::Number => "a number",
            Self::Texts => "a list of texts",
            Self::Counts => "a list of whole numbers",
            Self::Numbers => "a list of numbers",
        }
    }

    fn fits(self, value: &Value) -> bool {
        let all =
            |kind: Self| matches!(value, Value::Array(_, items) if items.iter().all(|item| kind.fits(item)));
        match self {
            Self::Text => matches!(value, Value::String(..)),
            Self::Flag => matches!(value, Value::Bool(..)),
            Self::Count => value.to_i128().is_some_and(|n| n >= 0) || value.to_u128().is_some(),
            Self::Number => matches!(value, Value::Num(..)),
            Self::Texts => all(Self::Text),
            Self::Counts => all(Self::Count),
            Self::Numbers => all(Self::Number),
        }
    }

    /// The text of a variable as such a value. Lists are separated by commas.
    fn read(self, text: &str) -> Option<Value> {
        let list = |kind: Self| {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(|part| kind.read(part)).collect::<Option<Vec<_>>>().map(Value::from)
        };
        match self {
            Self::Text => Some(Value::from(text)),
            Self::Flag => text.parse::<bool>().ok().map(Value::from),
            Self::Count => text.parse::<u64>().ok().map(Value::from),
            Self::Number => text.parse::<f64>().ok().map(Value::from),
            Self::Texts => list(Self::Text),
            Self::Counts => list(Self::Count),
            Self::Numbers => list(Self::Number),
        }
    }
}

/// The key that stands in the reference for one of a signing scope, which may have dots in its
/// name: scopes have the same keys as the section that they are in.
fn of_scope(key: &str) -> Cow<'_, str> {
    match key.strip_prefix(SCOPES).and_then(|rest| rest.strip_prefix('.')?.rsplit_once('.')) {
        Some((_, name @ ("key_files" | "jwks_uri"))) => Cow::Owned(format!("signing.{name}")),
        _ => Cow::Borrowed(key),
    }
}

/// Sections whose keys are task types.
const BY_TYPE: [&str; 2] = ["metrics.sla.", "tasks.fail_after."];
/// The section whose subsections operators name.
const SCOPES: &str = "signing.scopes";

/// The value at a dotted key; the whole for an empty one.
fn section<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    if key.is_empty() {
        return Some(value);
    }
    key.split('.').try_fold(value, |value, name| value.as_dict()?.get(name))
}
