//! Tasks in memory: for tests, and for trying things out. A restart forgets them, and nobody rings.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::query::{Cursor, Direction, ListQuery, Page, SortBy};
use super::{NewTask, RegistryError, Scope, Settled, Task, TaskRegistry, check_new, json, redaction};
use crate::task::{AccountId, TaskId, TaskState, Terminal};

/// A registry that lives as long as its process.
#[derive(Debug, Default)]
pub struct InMemoryTaskRegistry {
    tasks: Mutex<HashMap<TaskId, Task>>,
}

impl InMemoryTaskRegistry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<TaskId, Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(
        &self,
        id: &TaskId,
        scope: Scope<'_>,
        end: Terminal,
        value: Value,
    ) -> Result<Settled, RegistryError> {
        let mut tasks = self.tasks();
        let task = tasks.get_mut(id).filter(|task| is_in(task, scope)).ok_or(RegistryError::Unknown)?;
        let value = match end {
            Terminal::Completed => redaction::strip(task.task_type.as_str(), value),
            Terminal::Failed => value,
        };
        if task.state.is_terminal() {
            let stored = match end {
                Terminal::Completed => &task.result,
                Terminal::Failed => &task.error,
            };
            let repeated = task.state == TaskState::Terminal(end);
            return match stored {
                Some(stored) if repeated && json::same(stored, &value) => Ok(Settled::Already),
                _ => Err(RegistryError::Conflict { state: task.state }),
            };
        }
        task.state = TaskState::Terminal(end);
        match end {
            Terminal::Completed => task.result = Some(value),
            Terminal::Failed => task.error = Some(value),
        }
        task.updated_at = now();
        Ok(Settled::Now)
    }
}

impl TaskRegistry for InMemoryTaskRegistry {
    const IS_DURABLE: bool = false;

    async fn issue(&self, task: NewTask) -> Result<TaskId, RegistryError> {
        check_new(&task)?;
        if task.registration.is_some() && !task.task_type.is_known() {
            return Err(RegistryError::Refused {
                field: "task_type",
                problem: "is not one that a webhook can name; without a registration any type may be a task",
            });
        }
        let (id, now) = (TaskId::random(), now());
        let task = Task {
            id: id.clone(),
            account: task.account,
            state: TaskState::SUBMITTED,
            task_type: task.task_type,
            progress: None,
            result: None,
            error: None,
            request_context: task.request_context,
            created_at: now,
            updated_at: now,
        };
        self.tasks().insert(id.clone(), task);
        Ok(id)
    }

    async fn update_progress(
        &self,
        id: &TaskId,
        scope: Scope<'_>,
        progress: Value,
    ) -> Result<(), RegistryError> {
        json::check("progress", &progress)?;
        let mut tasks = self.tasks();
        if let Some(task) = tasks.get_mut(id).filter(|task| is_in(task, scope) && !task.state.is_terminal()) {
            task.state = TaskState::WORKING;
            task.progress = Some(progress);
            task.updated_at = now();
        }
        Ok(())
    }

    async fn complete(&self, id: &TaskId, scope: Scope<'_>, result: Value) -> Result<Settled, RegistryError> {
        json::check("result", &result)?;
        self.settle(id, scope, Terminal::Completed, result)
    }

    async fn fail(&self, id: &TaskId, scope: Scope<'_>, error: Value) -> Result<Settled, RegistryError> {
        json::check("error", &error)?;
        self.settle(id, scope, Terminal::Failed, error)
    }

    async fn get(&self, id: &TaskId, scope: Scope<'_>) -> Result<Option<Task>, RegistryError> {
        Ok(self.tasks().get(id).filter(|task| is_in(task, scope)).cloned())
    }

    async fn list(&self, account: &AccountId, query: &ListQuery) -> Result<Page, RegistryError> {
        query.check()?;
        let key = |task: &Task| match query.sort {
            SortBy::CreatedAt => seconds(task.created_at),
            SortBy::UpdatedAt => seconds(task.updated_at),
        };
        let order = |left: (f64, &TaskId), right: (f64, &TaskId)| -> Ordering {
            let ascending = left.0.total_cmp(&right.0).then_with(|| left.1.cmp(right.1));
            match query.direction {
                Direction::Ascending => ascending,
                Direction::Descending => ascending.reverse(),
            }
        };
        let tasks = self.tasks();
        let mut found: Vec<&Task> = tasks
            .values()
            .filter(|task| task.account == *account)
            .filter(|task| query.states.is_empty() || query.states.contains(&task.state))
            .filter(|task| query.task_types.is_empty() || query.task_types.contains(&task.task_type))
            .filter(|task| query.created_from.is_none_or(|from| task.created_at >= from))
            .filter(|task| query.created_before.is_none_or(|before| task.created_at < before))
            .filter(|task| {
                let after = query.after.as_ref();
                after.is_none_or(|after| order((key(task), &task.id), (after.seconds, &after.id)).is_gt())
            })
            .collect();
        found.sort_by(|left, right| order((key(left), &left.id), (key(right), &right.id)));
        let limit = query.limit as usize;
        let next = (found.len() > limit).then(|| found[limit - 1]);
        let next = next.map(|last| Cursor { seconds: key(last), id: last.id.clone() });
        Ok(Page { tasks: found.into_iter().take(limit).cloned().collect(), next })
    }

    async fn discard(&self, id: &TaskId, scope: Scope<'_>) -> Result<(), RegistryError> {
        let mut tasks = self.tasks();
        if tasks.get(id).is_some_and(|task| is_in(task, scope)) {
            tasks.remove(id);
        }
        Ok(())
    }
}

fn is_in(task: &Task, scope: Scope<'_>) -> bool {
    scope.account().is_none_or(|account| task.account.as_str() == account)
}

#[allow(clippy::disallowed_methods, reason = "the table's timestamps are its writer's clock")]
pub(super) fn now() -> SystemTime {
    SystemTime::now()
}

pub(super) fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}
