//! Tasks in Postgres, in the table of the AdCP SDKs.
//!
//! Every rule that several writers could break is in the statement itself: the account in the
//! predicate, the open state in the predicate of the one conditional UPDATE that ends a task.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deadpool_postgres::Pool;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::memory::{now, seconds};
use super::query::{Cursor, Direction, ListQuery, Page, SortBy};
use super::registering::{Keeper, Kept, Registering};
use super::{NewTask, RegistryError, Scope, Settled, Task, TaskRegistry, check_new, json, redaction};
use crate::migrations;
use crate::task::{AccountId, TaskId, TaskState, TaskType, Terminal};

/// The name of a task table: `^[a-z_][a-z0-9_]{0,44}$`, found by `search_path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName(String);

impl TableName {
    /// Parses a name.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] on `table` for anything but a plain lower-case identifier.
    pub fn parse(name: &str) -> Result<Self, RegistryError> {
        let first = |b: u8| b.is_ascii_lowercase() || b == b'_';
        let legal = name.bytes().next().is_some_and(first)
            && name.bytes().all(|b| first(b) || b.is_ascii_digit())
            && name.len() <= 45;
        match legal {
            true => Ok(Self(name.to_owned())),
            false => {
                Err(RegistryError::Refused { field: "table", problem: "must match ^[a-z_][a-z0-9_]{0,44}$" })
            }
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A durable registry on a pool of connections.
#[derive(Clone)]
pub struct PostgresTaskRegistry {
    pool: Pool,
    table: TableName,
    sql: Statements,
    keeper: Keeper,
}

#[derive(Clone)]
struct Statements {
    issue: String,
    #[cfg(feature = "sealing")]
    issue_sdk: String,
    progress: String,
    complete: String,
    fail: String,
    get: String,
    list_ascending: [String; 2],
    list_descending: [String; 2],
    discard: String,
}

impl PostgresTaskRegistry {
    /// A registry on `decisioning_tasks`.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        Self::with_table(pool, TableName(DEFAULT_TABLE.to_owned()))
    }

    /// A registry on another table.
    #[must_use]
    pub fn with_table(pool: Pool, table: TableName) -> Self {
        let named = |sql: &str| sql.replace(DEFAULT_TABLE, &table.0);
        let list = |column: &str, direction: &str, compare: &str| {
            named(LIST)
                .replace("/*sort*/ created_at", column)
                .replace("/*direction*/ DESC", direction)
                .replace("/*compare*/ <", compare)
        };
        let both = |direction, compare| {
            [list("created_at", direction, compare), list("updated_at", direction, compare)]
        };
        let sql = Statements {
            issue: named(ISSUE),
            #[cfg(feature = "sealing")]
            issue_sdk: named(ISSUE_SDK),
            progress: named(PROGRESS),
            complete: named(COMPLETE),
            fail: named(FAIL),
            get: named(GET),
            list_ascending: both("ASC", ">"),
            list_descending: both("DESC", "<"),
            discard: named(DISCARD),
        };
        Self { pool, table, sql, keeper: Keeper::default() }
    }

    /// The same registry, with tokens and credentials sealed before they reach the database.
    /// Without keys a daemon that has some seals them when it first sees them.
    #[cfg(feature = "sealing")]
    #[must_use]
    pub fn with_sealing(self, keys: crate::task::SealingKeys) -> Self {
        Self { keeper: Keeper::Sealing(keys.into()), ..self }
    }

    /// The same registry, with registrations in the form of the AdCP Python SDK: tasks that it
    /// issues are ended by the SDK, which owes the webhook in its own outbox. Ending one here is
    /// [`RegistryError::SealedRegistration`].
    #[cfg(feature = "sealing")]
    #[must_use]
    pub fn with_sdk_registrations(self, keys: crate::task::SdkKeys) -> Self {
        Self { keeper: Keeper::Sdk(keys.into()), ..self }
    }

    /// Brings the schema `taskbell` up to date, creates the task table where it is absent and
    /// puts our triggers on it. Safe on every boot and from many processes at once; the same
    /// as applying the files in `migrations/`.
    ///
    /// # Errors
    /// [`RegistryError::Migration`], [`RegistryError::Database`].
    pub async fn create_schema(&self) -> Result<(), RegistryError> {
        let mut client = self.pool.get().await?;
        migrations::apply(&mut client).await?;
        let transaction = client.transaction().await?;
        transaction.query_one(CREATE_LOCK, &[]).await?;
        transaction.query_one(CREATE_TABLE, &[&self.table.0]).await?;
        Ok(transaction.commit().await?)
    }

    async fn settle(
        &self,
        id: &TaskId,
        scope: Scope<'_>,
        end: Terminal,
        value: Value,
    ) -> Result<Settled, RegistryError> {
        let client = self.pool.get().await?;
        let (id, account) = (id.as_str(), scope.account());
        let get = client.prepare_cached(&self.sql.get).await?;
        // The type of a task never changes, so reading it first is no race.
        let value = match end {
            Terminal::Completed => {
                let row = client.query_opt(&get, &[&id, &account]).await?.ok_or(RegistryError::Unknown)?;
                redaction::strip(row.get("task_type"), value)
            }
            Terminal::Failed => value,
        };
        let sql = match end {
            Terminal::Completed => &self.sql.complete,
            Terminal::Failed => &self.sql.fail,
        };
        let settle = client.prepare_cached(sql).await?;
        let text = value.to_string();
        if client.execute(&settle, &[&id, &account, &text, &seconds(now())]).await? == 1 {
            return Ok(Settled::Now);
        }
        // Nothing was open: unknown, or it has ended, and how it ended never changes.
        let row = client.query_opt(&get, &[&id, &account]).await?.ok_or(RegistryError::Unknown)?;
        let task = task(&row)?;
        let stored = match end {
            Terminal::Completed => &task.result,
            Terminal::Failed => &task.error,
        };
        match stored {
            Some(stored) if task.state == TaskState::Terminal(end) && json::same(stored, &value) => {
                Ok(Settled::Already)
            }
            _ if task.state.is_terminal() => Err(RegistryError::Conflict { state: task.state }),
            _ if row.get("sealed") => Err(RegistryError::SealedRegistration),
            _ => Err(RegistryError::Corrupt { column: "state" }),
        }
    }
}

impl TaskRegistry for PostgresTaskRegistry {
    const IS_DURABLE: bool = true;

    async fn issue(&self, task: NewTask) -> Result<TaskId, RegistryError> {
        check_new(&task)?;
        let id = TaskId::random();
        let context = task.request_context.as_ref().map(Value::to_string);
        let mut client = self.pool.get().await?;
        let issue = client.prepare_cached(&self.sql.issue).await?;
        let (account, kind, now) = (task.account.as_str(), task.task_type.as_str(), seconds(now()));
        let Some(registration) = &task.registration else {
            client.execute(&issue, &[&id.as_str(), &account, &kind, &context, &now]).await?;
            return Ok(id);
        };
        if let Some(authentication) = &registration.authentication {
            let scheme = authentication.scheme();
            tracing::warn!(task.id = %id, scheme, "a webhook with deprecated authentication is registered");
        }
        #[cfg_attr(
            not(feature = "sealing"),
            allow(clippy::infallible_destructuring_match, reason = "there is one form without sealing")
        )]
        let registering = match self.keeper.keep(&id, &task, registration)? {
            Kept::Native(registering) => registering,
            #[cfg(feature = "sealing")]
            Kept::Sdk(sealed) => {
                let issue = client.prepare_cached(&self.sql.issue_sdk).await?;
                let (ciphertext, nonce) = (sealed.ciphertext, sealed.nonce.to_vec());
                client
                    .execute(&issue, &[&id.as_str(), &account, &kind, &context, &now, &ciphertext, &nonce])
                    .await?;
                return Ok(id);
            }
        };
        let register = client.prepare_cached(REGISTER).await?;
        let transaction = client.transaction().await?;
        transaction.execute(&issue, &[&id.as_str(), &account, &kind, &context, &now]).await?;
        let Registering { config, states, signing_scope, sealed, nonce, sealed_with } = &registering;
        transaction
            .query_one(
                &register,
                &[&id.as_str(), config, &self.table.0, states, signing_scope, sealed, nonce, sealed_with],
            )
            .await
            .map_err(refused)?;
        transaction.commit().await?;
        Ok(id)
    }

    async fn update_progress(
        &self,
        id: &TaskId,
        scope: Scope<'_>,
        progress: Value,
    ) -> Result<(), RegistryError> {
        json::check("progress", &progress)?;
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(&self.sql.progress).await?;
        let text = progress.to_string();
        client.execute(&statement, &[&id.as_str(), &scope.account(), &text, &seconds(now())]).await?;
        Ok(())
    }

    async fn complete(&self, id: &TaskId, scope: Scope<'_>, result: Value) -> Result<Settled, RegistryError> {
        json::check("result", &result)?;
        self.settle(id, scope, Terminal::Completed, result).await
    }

    async fn fail(&self, id: &TaskId, scope: Scope<'_>, error: Value) -> Result<Settled, RegistryError> {
        json::check("error", &error)?;
        self.settle(id, scope, Terminal::Failed, error).await
    }

    async fn get(&self, id: &TaskId, scope: Scope<'_>) -> Result<Option<Task>, RegistryError> {
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(&self.sql.get).await?;
        client.query_opt(&statement, &[&id.as_str(), &scope.account()]).await?.as_ref().map(task).transpose()
    }

    async fn list(&self, account: &AccountId, query: &ListQuery) -> Result<Page, RegistryError> {
        query.check()?;
        let sql = match query.direction {
            Direction::Ascending => &self.sql.list_ascending,
            Direction::Descending => &self.sql.list_descending,
        };
        let sql = match query.sort {
            SortBy::CreatedAt => &sql[0],
            SortBy::UpdatedAt => &sql[1],
        };
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(sql).await?;
        let states: Vec<&str> = query.states.iter().map(|state| state.as_str()).collect();
        let types: Vec<&str> = query.task_types.iter().map(TaskType::as_str).collect();
        let (from, before) = (query.created_from.map(seconds), query.created_before.map(seconds));
        let after = query.after.as_ref();
        let (after_seconds, after_id) =
            (after.map(|after| after.seconds), after.map(|after| after.id.as_str()));
        let one_more = i64::from(query.limit) + 1;
        let rows = client
            .query(
                &statement,
                &[&account.as_str(), &states, &types, &from, &before, &after_seconds, &after_id, &one_more],
            )
            .await?;
        let limit = query.limit as usize;
        let next = match rows.len() > limit {
            false => None,
            true => {
                let last = &rows[limit - 1];
                let column = match query.sort {
                    SortBy::CreatedAt => "created_at",
                    SortBy::UpdatedAt => "updated_at",
                };
                let id = TaskId::parse(last.get::<_, String>("task_id"))?;
                Some(Cursor { seconds: last.get(column), id })
            }
        };
        Ok(Page { tasks: rows.iter().take(limit).map(task).collect::<Result<_, _>>()?, next })
    }

    async fn discard(&self, id: &TaskId, scope: Scope<'_>) -> Result<(), RegistryError> {
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(&self.sql.discard).await?;
        client.execute(&statement, &[&id.as_str(), &scope.account()]).await?;
        Ok(())
    }
}

fn task(row: &Row) -> Result<Task, RegistryError> {
    let corrupt = |column| RegistryError::Corrupt { column };
    let at = |column: &'static str| -> Result<SystemTime, RegistryError> {
        let since = Duration::try_from_secs_f64(row.get(column)).map_err(|_| corrupt(column))?;
        UNIX_EPOCH.checked_add(since).ok_or_else(|| corrupt(column))
    };
    Ok(Task {
        id: TaskId::parse(row.get::<_, String>("task_id")).map_err(|_| corrupt("task_id"))?,
        account: AccountId::parse(row.get::<_, String>("account_id")).map_err(|_| corrupt("account_id"))?,
        state: row.get::<_, &str>("state").parse().map_err(|_| corrupt("state"))?,
        task_type: TaskType::parse(row.get::<_, String>("task_type")).map_err(|_| corrupt("task_type"))?,
        progress: row.get("progress"),
        result: row.get("result"),
        error: row.get("error"),
        request_context: row.get("request_context"),
        created_at: at("created_at")?,
        updated_at: at("updated_at")?,
    })
}

/// What `register_webhook` raised on purpose is the caller's to repair; its messages carry no
/// values.
fn refused(error: tokio_postgres::Error) -> RegistryError {
    match error.as_db_error() {
        Some(db) if *db.code() == SqlState::INVALID_PARAMETER_VALUE && db.column() == Some("task_type") => {
            RegistryError::Refused {
                field: "task_type",
                problem: "is not one that a webhook can name; without a registration any type may be a task",
            }
        }
        Some(db) if *db.code() == SqlState::INVALID_PARAMETER_VALUE => {
            RegistryError::RegistrationRefused { message: db.message().to_owned() }
        }
        _ => error.into(),
    }
}

/// The name in the statements, replaced where another one is configured.
const DEFAULT_TABLE: &str = "decisioning_tasks";
const ISSUE: &str = include_str!("issue.sql");
#[cfg(feature = "sealing")]
const ISSUE_SDK: &str = include_str!("issue_sdk.sql");
const PROGRESS: &str = include_str!("progress.sql");
const COMPLETE: &str = include_str!("complete.sql");
const FAIL: &str = include_str!("fail.sql");
const GET: &str = include_str!("get.sql");
const LIST: &str = include_str!("list.sql");
const DISCARD: &str = include_str!("discard.sql");
const REGISTER: &str =
    "SELECT taskbell.register_webhook($1, $2::text::jsonb, $3::text::regclass, $4, $5, $6, $7, $8)::text";
const CREATE_TABLE: &str = "SELECT taskbell.create_task_table($1)";
/// `tasktabl` in ASCII: one creator at a time.
const CREATE_LOCK: &str = "SELECT pg_advisory_xact_lock(8386110886491808364)::text";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_identifiers_name_a_table() {
        for name in ["decisioning_tasks", "_t", "t1"] {
            assert!(TableName::parse(name).is_ok(), "{name}");
        }
        for name in ["", "1t", "T", "a b", "a;drop table x", "a\"", "public.t", &"a".repeat(46)] {
            assert!(TableName::parse(name).is_err(), "{name}");
        }
    }
}
