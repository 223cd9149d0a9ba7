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

/// What a webhook may say of a task: every state that AdCP knows (`task-status.json`) but
/// `unknown`. Our registry keeps four of them; tables of others may have more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Accepted, and waiting for somebody.
    Submitted,
    /// Somebody works on it.
    Working,
    /// Paused until the buyer says more.
    InputRequired,
    /// Paused until the buyer authenticates.
    AuthRequired,
    /// Ended with a result.
    Completed,
    /// Ended with an error.
    Failed,
    /// Ended because the buyer wished it.
    Canceled,
    /// Declined.
    Rejected,
}

impl Status {
    /// All of them, the open ones first.
    pub const ALL: [Self; 8] = [
        Self::Submitted,
        Self::Working,
        Self::InputRequired,
        Self::AuthRequired,
        Self::Completed,
        Self::Failed,
        Self::Canceled,
        Self::Rejected,
    ];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Working => "working",
            Self::InputRequired => "input-required",
            Self::AuthRequired => "auth-required",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Rejected => "rejected",
        }
    }

    /// Whether it ends the task: a buyer who registered is always told.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled | Self::Rejected)
    }
}

impl std::str::FromStr for Status {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
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

/// A word that is no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no task state")]
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
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
            if let Ok(state) = status.as_str().parse::<TaskState>() {
                assert_eq!(state.is_terminal(), status.is_terminal());
            }
        }
        assert!("unknown".parse::<Status>().is_err());
    }
}
