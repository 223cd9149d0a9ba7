//! The seller's half: tasks that wait for people, kept where a restart cannot lose them.
//!
//! [`TaskRegistry`] is what a seller's server calls. [`PostgresTaskRegistry`] keeps tasks in the
//! table that the AdCP SDKs use; the table's triggers then record every change and owe the
//! buyer a webhook, so nothing here knows about sending. [`InMemoryTaskRegistry`] is for tests.

mod gate;
mod json;
mod memory;
mod postgres;
mod query;
mod redaction;
mod registering;

use std::time::SystemTime;

use serde_json::Value;

use crate::task::{AccountId, IdError, Registration, RegistrationError, TaskId, TaskState, TaskType};

pub use gate::{AdcpEnv, NotDurable, require_durable};
pub use memory::InMemoryTaskRegistry;
pub use postgres::{PostgresTaskRegistry, TableName};
pub use query::{Cursor, Direction, ListQuery, Page, SortBy};

/// Keeps tasks from issue to their end, and after it.
///
/// Both implementations hold to one suite of conformance tests. A terminal task never changes:
/// completing a failed task and failing a completed one are [`RegistryError::Conflict`]s, and so
/// is a second result or error that differs from the first. Repeating the same end with an
/// equal value is fine and says [`Settled::Already`].
///
/// Every operation on one task takes a [`Scope`]. Outside its account a task does not exist:
/// the answer is the same as for an id that was never issued.
pub trait TaskRegistry: Send + Sync {
    /// Whether tasks survive a restart of the process. See [`require_durable`].
    const IS_DURABLE: bool;

    /// Issues a task in the state `submitted` and returns its new id.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for a registration with a task type that webhooks cannot name,
    /// and for JSON that cannot be stored; nothing is kept then.
    fn issue(&self, task: NewTask) -> impl Future<Output = Result<TaskId, RegistryError>> + Send;

    /// Replaces the progress; the first one moves `submitted` to `working`. A task that has
    /// ended or does not exist is left alone, silently: progress may be late.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for JSON that cannot be stored.
    fn update_progress(
        &self,
        id: &TaskId,
        scope: Scope<'_>,
        progress: Value,
    ) -> impl Future<Output = Result<(), RegistryError>> + Send;

    /// Ends a task with its result. Credentials are stripped from it first, by the rules of the
    /// AdCP SDKs for the task's type.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Conflict`], [`RegistryError::Refused`].
    fn complete(
        &self,
        id: &TaskId,
        scope: Scope<'_>,
        result: Value,
    ) -> impl Future<Output = Result<Settled, RegistryError>> + Send;

    /// Ends a task with an error: the wire error object itself.
    ///
    /// # Errors
    /// As [`TaskRegistry::complete`].
    fn fail(
        &self,
        id: &TaskId,
        scope: Scope<'_>,
        error: Value,
    ) -> impl Future<Output = Result<Settled, RegistryError>> + Send;

    /// Reads a task; `None` when there is none in this scope.
    ///
    /// # Errors
    /// [`RegistryError::Database`], [`RegistryError::Corrupt`].
    fn get(
        &self,
        id: &TaskId,
        scope: Scope<'_>,
    ) -> impl Future<Output = Result<Option<Task>, RegistryError>> + Send;

    /// Lists one account's tasks, a page at a time.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for a page size out of bounds or a cursor of another query.
    fn list(
        &self,
        account: &AccountId,
        query: &ListQuery,
    ) -> impl Future<Output = Result<Page, RegistryError>> + Send;

    /// Forgets a task, whatever its state. What is owed for it stays owed. An unknown id is fine.
    ///
    /// # Errors
    /// [`RegistryError::Database`].
    fn discard(
        &self,
        id: &TaskId,
        scope: Scope<'_>,
    ) -> impl Future<Output = Result<(), RegistryError>> + Send;
}

/// Whose tasks an operation may touch.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// Only this account's: for everything that a buyer's request leads to.
    Account(&'a AccountId),
    /// Anybody's: for the seller's own back office.
    Operator,
}

impl Scope<'_> {
    fn account(&self) -> Option<&str> {
        match self {
            Self::Account(account) => Some(account.as_str()),
            Self::Operator => None,
        }
    }
}

/// A task to be issued.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// Its owner.
    pub account: AccountId,
    /// The AdCP operation that it answers.
    pub task_type: TaskType,
    /// The request's `context`, echoed in the webhook.
    pub request_context: Option<Value>,
    /// Whom to ring; `None` when the buyer polls.
    pub registration: Option<Registration>,
}

/// A task as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Its owner.
    pub account: AccountId,
    /// Where it stands.
    pub state: TaskState,
    /// The AdCP operation that it answers.
    pub task_type: TaskType,
    /// The latest progress.
    pub progress: Option<Value>,
    /// What it ended with, if it completed.
    pub result: Option<Value>,
    /// What it ended with, if it failed.
    pub error: Option<Value>,
    /// The request's `context`.
    pub request_context: Option<Value>,
    /// When it was issued, by the clock of whoever issued it.
    pub created_at: SystemTime,
    /// When it last changed, by the clock of whoever changed it.
    pub updated_at: SystemTime,
}

/// How an end was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The task ended with this call.
    Now,
    /// It had ended so before.
    Already,
}

/// Why an operation on a task was not done. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// No such task in this scope.
    #[error("there is no such task")]
    Unknown,
    /// The task ended otherwise.
    #[error("the task has {state} already, with another outcome; a task that has ended never changes")]
    Conflict {
        /// How it ended.
        state: TaskState,
    },
    /// The task was issued by the Python SDK with a registration that only the SDK can open.
    #[error(
        "the task carries a registration sealed by the AdCP Python SDK: settle it through the SDK, which rings the buyer"
    )]
    SealedRegistration,
    /// A value cannot be taken.
    #[error("{field} {problem}")]
    Refused {
        /// The argument at fault.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: &'static str,
    },
    /// An identifier cannot be taken.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A registration cannot be taken.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The database refused what the registration asks for.
    #[error("the registration was refused: {message}")]
    RegistrationRefused {
        /// The database's message, which names the member and no value.
        message: String,
    },
    /// A stored row breaks the table's contract.
    #[error("the stored task has a {column} that cannot be read")]
    Corrupt {
        /// The column.
        column: &'static str,
    },
    /// No connection could be had.
    #[error("no connection to the database")]
    Pool(#[from] deadpool_postgres::PoolError),
    /// The database failed.
    #[error("the database refused a statement")]
    Database(#[from] tokio_postgres::Error),
    /// The schema could not be made.
    #[error(transparent)]
    Migration(#[from] crate::migrations::MigrationError),
}

/// What both implementations refuse at issue.
fn check_new(task: &NewTask) -> Result<(), RegistryError> {
    if let Some(context) = &task.request_context {
        json::check("request_context", context)?;
        if !context.is_object() {
            return Err(RegistryError::Refused {
                field: "request_context",
                problem: "must be a JSON object",
            });
        }
    }
    Ok(())
}
