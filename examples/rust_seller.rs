//! A seller in Rust, wired to the registry: issue, work, complete. The daemon rings the buyer.
//!
//! `DATABASE_URL=postgres://… cargo run --example rust_seller -- https://buyer.example/hook`

#![allow(clippy::disallowed_methods, reason = "reading the world is its business")]

use std::error::Error;
use std::str::FromStr;

use deadpool_postgres::{Manager, Pool};
use serde_json::json;
use taskbell::registry::{AdcpEnv, NewTask, PostgresTaskRegistry, Scope, TaskRegistry, require_durable};
use taskbell::task::{AccountId, Registration, TaskType, UrlSchemes};
use tokio_postgres::NoTls;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dsn = std::env::args().nth(2).map_or_else(|| std::env::var("DATABASE_URL"), Ok)?;
    let callback = std::env::args().nth(1).ok_or("give the buyer's callback URL")?;
    let pool = Pool::builder(Manager::new(tokio_postgres::Config::from_str(&dsn)?, NoTls)).build()?;

    // Once, when the server starts.
    let registry = require_durable(AdcpEnv::from_env(), PostgresTaskRegistry::new(pool))?;
    registry.create_schema().await?;

    // A buyer's create_media_buy needs a person: answer `submitted`, with this id.
    let account = AccountId::parse("acct_42")?;
    let config = json!({ "url": callback, "operation_id": "op_7" });
    let id = registry
        .issue(NewTask {
            account: account.clone(),
            task_type: TaskType::parse("create_media_buy")?,
            request_context: Some(json!({ "campaign": "spring" })),
            registration: Some(Registration::parse(&config, UrlSchemes::HttpsOnly)?),
        })
        .await?;
    println!("submitted {id}");

    // Hours later, in the back office.
    let progress = json!({ "percentage": 50, "current_step": "legal review" });
    registry.update_progress(&id, Scope::Operator, progress).await?;
    registry.complete(&id, Scope::Operator, json!({ "media_buy_id": "mb_1" })).await?;

    // What the buyer sees when it polls, and what the webhook carries.
    let task = registry.get(&id, Scope::Account(&account)).await?.ok_or("the task is gone")?;
    println!("{} {}", task.state, task.result.unwrap_or_default());
    Ok(())
}
