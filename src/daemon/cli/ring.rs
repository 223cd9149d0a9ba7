//! `ring URL`: one signed test webhook, to try a receiver.

use std::time::{Duration, SystemTime};

use anyhow::{anyhow, bail};
use clap::Args;
use serde_json::value::RawValue;

use crate::daemon::config::Config;
use crate::daemon::keys::read_key_sets;
use crate::daemon::run::sender;
use crate::task::{CallbackUrl, OperationId, SigningScope, Status, TaskId, TaskType, UrlSchemes};
use crate::webhook::{Envelope, IdempotencyKey, Outcome, Prepared, Signer, TraceContext};

#[derive(Debug, Args)]
pub(super) struct Ring {
    /// Where to.
    url: String,
    /// The operation id to echo.
    #[arg(long, default_value = "taskbell-ring")]
    operation_id: String,
    /// The task type to name.
    #[arg(long, default_value = "create_media_buy")]
    task_type: String,
    /// The signing scope whose key signs; the default key if absent.
    #[arg(long)]
    scope: Option<String>,
}

impl Ring {
    pub(super) async fn run(self, config: &Config) -> anyhow::Result<()> {
        let schemes = if config.guard.allow_http { UrlSchemes::AllowHttp } else { UrlSchemes::HttpsOnly };
        let url = CallbackUrl::parse(&self.url, schemes)?;
        let signing_scope = self.scope.as_deref().map(SigningScope::parse).transpose()?;
        let keys = read_key_sets(&config.signing)?;
        let now = SystemTime::now();
        if keys.ring(signing_scope.as_ref()).and_then(|ring| ring.signing(now)).is_none() {
            bail!("signing: no key to sign with; make one with `taskbell keys generate`");
        }
        let (sender, signer) = (sender(config)?, Signer::new(keys, config.legacy));
        let key = IdempotencyKey::of_row(uuid::Uuid::new_v4());
        let result = RawValue::from_string(r#"{"test":true,"message":"taskbell ring"}"#.to_owned())?;
        let body = Envelope {
            idempotency_key: &key,
            operation_id: &OperationId::parse(&self.operation_id)?,
            task_id: &TaskId::random(),
            task_type: &TaskType::parse(self.task_type)?,
            status: Status::Completed,
            timestamp: now,
            token: None,
            result: Some(&result),
            context: None,
        }
        .render()?;
        let began = tokio::time::Instant::now();
        let trace = TraceContext::of(&key, uuid::Uuid::new_v4());
        let prepared = Prepared { url, key, body, authentication: None, signing_scope };
        let outcome = sender.send(&prepared, &signer, trace, now, config.deadline).await;
        let took: Duration = began.elapsed();
        let status = outcome.status().map_or_else(String::new, |status| format!("{status} "));
        match (&outcome, outcome.reason()) {
            (_, None) => {
                println!("{status}after {took:.0?}: accepted");
                Ok(())
            }
            (Outcome::Answered { signature_error: Some(named), .. }, _) => {
                Err(anyhow!("{status}after {took:.0?}: {named}: {}", named.explain()))
            }
            (_, Some(reason)) => Err(anyhow!("{status}after {took:.0?}: {reason}: {}", reason.explain())),
        }
    }
}
