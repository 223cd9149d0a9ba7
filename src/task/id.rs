//! Identifiers: made only by parsing, compared byte for byte.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Identifies one task, as the seller's server handed it to the buyer.
///
/// Our own registry issues `task_` and 32 hex digits; the AdCP Python SDK 16 digits, the
/// TypeScript SDK a UUID. Any of them is accepted, up to [`TaskId::MAX_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(String);

impl TaskId {
    /// Longest accepted id. `{task_id}.terminal` must fit AdCP's 255 characters for a
    /// `notification_id` (`mcp-webhook-payload.json`).
    pub const MAX_BYTES: usize = 246;

    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("task_{}", uuid::Uuid::new_v4().simple()))
    }

    /// Parses an id.
    ///
    /// # Errors
    /// [`IdError`] when it is empty, longer than [`TaskId::MAX_BYTES`], or has a character
    /// outside printable ASCII.
    pub fn parse(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        if text.is_empty() {
            return Err(IdError::Empty { field: "task_id" });
        }
        if text.len() > Self::MAX_BYTES {
            return Err(IdError::TooLong { field: "task_id", max: Self::MAX_BYTES });
        }
        if !text.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
            return Err(IdError::Characters { field: "task_id" });
        }
        Ok(Self(text))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Owner of a task: the seller's own opaque account id. Spaces around it are part of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountId(String);

impl AccountId {
    /// Parses an account id.
    ///
    /// # Errors
    /// [`IdError`] when it is empty, only white space, or `<unset>`, the placeholder that
    /// servers carry before authentication (AdCP Python SDK, `decisioning`): a task under
    /// it would be visible to every unauthenticated caller. Also for a NUL, which Postgres
    /// cannot store.
    pub fn parse(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        if text.trim().is_empty() {
            return Err(IdError::Empty { field: "account_id" });
        }
        if text == "<unset>" {
            return Err(IdError::Unset);
        }
        if text.contains('\0') {
            return Err(IdError::Characters { field: "account_id" });
        }
        Ok(Self(text))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// Nothing, or nothing but white space.
    #[error("{field} is empty: give the id itself")]
    Empty {
        /// The field at fault.
        field: &'static str,
    },
    /// Over the limit.
    #[error("{field} is longer than {max} bytes")]
    TooLong {
        /// The field at fault.
        field: &'static str,
        /// The limit.
        max: usize,
    },
    /// A character that the field cannot have.
    #[error("{field} has a character that is not allowed in it")]
    Characters {
        /// The field at fault.
        field: &'static str,
    },
    /// `<unset>`.
    #[error("account_id is the placeholder `<unset>`: resolve the caller's account before issuing a task")]
    Unset,
}

macro_rules! text_id {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }
        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    )*};
}
text_id!(TaskId, AccountId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_that_nobody_owns_are_refused() {
        for text in ["", " ", "\t\n", "<unset>", "a\0b"] {
            assert!(AccountId::parse(text).is_err(), "{text:?}");
        }
        for text in [" a ", "\u{200b}", "<Unset>", "ключ"] {
            assert_eq!(AccountId::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn task_ids_of_every_sdk_parse() {
        for text in ["task_0123456789abcdef", "task_7c9e6679-7425-40de-944b-e07fc1f90ae7", "t"] {
            assert_eq!(TaskId::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "a b", "é", &"x".repeat(247)] {
            assert!(TaskId::parse(text).is_err(), "{text:?}");
        }
        assert_ne!(TaskId::random(), TaskId::random());
    }
}
