//! States: open ones, which people work on, and terminal ones, which never change.

use std::fmt;

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskState {
    /// Somebody still has to act.
    Open(Open),
    /// Finished for good.
    Terminal(Terminal),
}

/// A state that people still work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Open {
    /// Accepted; nobody has reported progress yet.
    Submitted,
    /// Progress was reported at least once.
    Working,
}

/// A state that is never left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Terminal {
    /// Ended with a result.
    Completed,
    /// Ended with an error.
    Failed,
}

impl TaskState {
    /// `submitted`.
    pub const SUBMITTED: Self = Self::Open(Open::Submitted);
    /// `working`.
    pub const WORKING: Self = Self::Open(Open::Working);
    /// `completed`.
    pub const COMPLETED: Self = Self::Terminal(Terminal::Completed);
    /// `failed`.
    pub const FAILED: Self = Self::Terminal(Terminal::Failed);
    /// All four, in the order in which a task can pass through them.
    pub const ALL: [Self; 4] = [Self::SUBMITTED, Self::WORKING, Self::COMPLETED, Self::FAILED];

    /// The word in the database and on the wire (AdCP `task-status.json`).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open(Open::Submitted) => "submitted",
            Self::Open(Open::Working) => "working",
            Self::Terminal(terminal) => terminal.as_str(),
        }
    }

    /// Whether it is never left.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Terminal(_))
    }
}

impl Terminal {
    /// The word in the database and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

impl std::str::FromStr for TaskState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is none of the four states.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no task state: submitted, working, completed or failed")]
pub struct UnknownState(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_parses_back() {
        for state in TaskState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert!("done".parse::<TaskState>().is_err());
    }
}
