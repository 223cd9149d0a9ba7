//! Environment variables as values of the types that their keys have.
//!
//! The reference file says which keys there are and of which type each is, so that a secret
//! which looks like a number stays a text.

use figment::Figment;
use figment::value::{Dict, Value};

use super::Sources;

/// `TASKBELL_A__B` as `a.b`. Kubernetes puts `TASKBELL_PORT` and `TASKBELL_SERVICE_…` of a
/// service named taskbell into every pod: names without a level are not ours.
pub(super) fn environment(sources: &Sources) -> impl Iterator<Item = (String, String)> + '_ {
    sources.environment.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix("TASKBELL_")?;
        name.contains("__").then(|| (name.to_ascii_lowercase().replace("__", "."), value.clone()))
    })
}

/// The keys that there are, each with its default.
pub(super) struct Keys(Dict);

impl Keys {
    /// The keys of a whole configuration.
    pub(super) fn of(figment: &Figment) -> Self {
        Self(figment.extract().unwrap_or_default())
    }

    /// The text as a value of the key's type; `None` for an unknown key or another type.
    pub(super) fn parse(&self, key: &str, text: &str) -> Option<Value> {
        let found = Value::from(self.0.clone()).find(key);
        let inside = |table: &str| key.strip_prefix(table).is_some_and(|rest| !rest.is_empty());
        match found {
            // A string stays one, whatever it looks like: a password may be `12345`.
            Some(Value::String(..)) => Some(Value::from(text)),
            Some(Value::Bool(..)) => text.parse::<bool>().ok().map(Value::from),
            Some(Value::Num(_, figment::value::Num::F64(_))) => text.parse::<f64>().ok().map(Value::from),
            Some(Value::Num(..)) => text.parse::<u64>().ok().map(Value::from),
            Some(Value::Array(..)) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Some(Value::from(
                    parts
                        .map(|part| part.parse::<u64>().map_or_else(|_| Value::from(part), Value::from))
                        .collect::<Vec<_>>(),
                ))
            }
            None if inside("metrics.sla.") => Some(Value::from(text)),
            _ => None,
        }
    }
}
