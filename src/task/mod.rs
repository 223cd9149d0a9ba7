//! The words everything else is said in: identifiers, states, and what a buyer registered.
//!
//! Nothing here does I/O, reads a clock or knows Postgres. A value of one of these types has
//! been parsed: no stage after the first checks an identifier again.

mod id;
mod kind;
mod state;
mod registration;
mod target;
#[cfg(feature = "sealing")]
mod sealing;

pub use id::{AccountId, IdError, TaskId};
pub use kind::{TaskType, protocol_of, task_types};
pub use registration::{
    Authentication, CallbackUrl, OperationId, Registration, RegistrationError, SigningScope, UrlSchemes,
};
#[cfg(feature = "sealing")]
pub use sealing::{Binding, OpenError, SealError, Sealed, SealingKey, SealingKeyError, SealingKeys, Secrets};
pub use state::{Open, Status, TaskState, Terminal, UnknownState};
#[cfg(feature = "daemon")]
pub(crate) use target::canonicalize;
pub use target::{Target, TargetError};
