//! A connection of the pool, for one exchange of limited length.
//!
//! The server ends statements that take too long, but a connection that went silent (a pooler
//! that hangs, a path that swallows packets) never says so. And a query whose future is dropped
//! goes on: whoever gets the connection next waits behind it. So a connection goes back to the
//! pool only after it has answered; every other one is closed.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use deadpool_postgres::{ClientWrapper, Object, Pool};
use tokio::time::timeout;

use super::OutboxError;

/// A connection that is closed when it is dropped, unless it was given back.
pub(crate) struct Loan(Option<Object>);

impl Loan {
    /// Waits for a connection as long as the pool does.
    pub(crate) async fn of(pool: &Pool) -> Result<Self, OutboxError> {
        Ok(Self(Some(pool.get().await?)))
    }

    /// Gives it back: everything that was asked of it has been answered, be it with an error.
    pub(crate) fn give_back(mut self) {
        drop(self.0.take());
    }

    /// Keeps it for good, outside the pool, which opens another when it needs one.
    pub(crate) fn keep(mut self) -> ClientWrapper {
        Object::take(self.0.take().unwrap_or_else(|| unreachable!("it is taken only when the loan ends")))
    }
}

impl Deref for Loan {
    type Target = Object;

    fn deref(&self) -> &Object {
        self.0.as_ref().unwrap_or_else(|| unreachable!("it is taken only when the loan ends"))
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut Object {
        self.0.as_mut().unwrap_or_else(|| unreachable!("it is taken only when the loan ends"))
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}

/// Waits for an answer of the database, but no longer than `patience`, which is longer than the
/// server's own limit on statements.
///
/// # Errors
/// [`OutboxError::Silent`].
pub(crate) async fn patiently<T>(
    patience: Duration,
    answer: impl Future<Output = T>,
) -> Result<T, OutboxError> {
    tokio::pin!(answer);
    // In two halves: a process that was frozen finds its timer run out and its answer unread.
    for _ in 0..2 {
        if let Ok(answer) = timeout(patience / 2, &mut answer).await {
            return Ok(answer);
        }
    }
    Err(OutboxError::Silent)
}
