//! What to list: filters, order and the place where the last page ended.

use std::time::SystemTime;

use crate::task::{TaskId, TaskState, TaskType};

use super::{RegistryError, Task};

/// One page of one account's tasks.
#[derive(Debug, Clone)]
pub struct ListQuery {
    /// Only these states; any when empty.
    pub states: Vec<TaskState>,
    /// Only these types; any when empty.
    pub task_types: Vec<TaskType>,
    /// Only tasks issued at this time or later.
    pub created_from: Option<SystemTime>,
    /// Only tasks issued before this time.
    pub created_before: Option<SystemTime>,
    /// The order; tasks of one moment are ordered by id.
    pub sort: SortBy,
    /// Which end comes first.
    pub direction: Direction,
    /// Tasks a page, 1 to 100.
    pub limit: u32,
    /// Where the last page ended.
    pub after: Option<Cursor>,
}

impl Default for ListQuery {
    fn default() -> Self {
        Self {
            states: Vec::new(),
            task_types: Vec::new(),
            created_from: None,
            created_before: None,
            sort: SortBy::CreatedAt,
            direction: Direction::Descending,
            limit: 50,
            after: None,
        }
    }
}

/// What tasks are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortBy {
    /// When they were issued.
    CreatedAt,
    /// When they last changed.
    UpdatedAt,
}

/// Which end comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The oldest.
    Ascending,
    /// The newest.
    Descending,
}

/// Where a page ended: the sort value, as the bits of its epoch seconds, and the id.
#[derive(Debug, Clone, PartialEq)]
pub struct Cursor {
    pub(super) seconds: f64,
    pub(super) id: TaskId,
}

/// Some tasks, and where to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The tasks, in order.
    pub tasks: Vec<Task>,
    /// Where the next page begins; `None` when this was the last.
    pub next: Option<Cursor>,
}

impl ListQuery {
    pub(super) fn check(&self) -> Result<(), RegistryError> {
        if (1..=100).contains(&self.limit) {
            Ok(())
        } else {
            Err(RegistryError::Refused { field: "limit", problem: "must be from 1 to 100" })
        }
    }
}

impl Cursor {
    /// The cursor as opaque text, for a buyer to hand back.
    #[must_use]
    pub fn encode(&self) -> String {
        format!("{:016x}.{}", self.seconds.to_bits(), self.id)
    }

    /// Reads such a text.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] on `cursor` when it is not one of ours.
    pub fn decode(text: &str) -> Result<Self, RegistryError> {
        let refused =
            || RegistryError::Refused { field: "cursor", problem: "is not one that an earlier page gave" };
        let (bits, id) = text.split_once('.').ok_or_else(refused)?;
        let bits = u64::from_str_radix(bits, 16).map_err(|_| refused())?;
        let seconds = f64::from_bits(bits);
        if !seconds.is_finite() {
            return Err(refused());
        }
        Ok(Self { seconds, id: TaskId::parse(id).map_err(|_| refused())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_the_way_through_a_buyer() {
        let cursor = Cursor { seconds: 1_776_520_800.123_456, id: TaskId::random() };
        assert_eq!(Cursor::decode(&cursor.encode()).unwrap(), cursor);
        for text in ["", ".", "zz.task_1", "7ff8000000000000.task_1", "0.a b"] {
            assert!(Cursor::decode(text).is_err(), "{text}");
        }
    }
}
