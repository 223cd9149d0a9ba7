//! `ring URL`: one signed test webhook, to try a receiver.

use std::time::{Duration, SystemTime};

use anyhow::{anyhow, bail};
use clap::Args;
use serde_json::value::RawValue;

use crate::daemon::config::Config;
use crate::daemon::run::{read_keys, sender};
use crate::task::{CallbackUrl, TaskId, Terminal, UrlSchemes};
use crate::webhook::{Envelope, IdempotencyKey, Outcome, Prepared};

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
}

impl Ring {
    pub(super) async fn run(self, config: &Config) -> anyhow::Result<()> {
        let schemes = if config.guard.allow_http { UrlSchemes::AllowHttp } else { UrlSchemes::HttpsOnly };
        let url = CallbackUrl::parse(&self.url, schemes)?;
        let keys = read_keys(&config.key_files)?;
        if keys.signer().is_none() {
            bail!("signing.key_files: no key to sign with; make one with `taskbell keys generate`");
        }
        let sender = sender(config, keys)?;
        let (now, key) = (SystemTime::now(), IdempotencyKey::of_row(uuid::Uuid::new_v4()));
        let result = RawValue::from_string(r#"{"test":true,"message":"taskbell ring"}"#.to_owned())?;
        let body = Envelope {
            key: &key,
            operation_id: &self.operation_id,
            task_id: TaskId::random().as_str(),
            task_type: &self.task_type,
            status: Terminal::Completed,
            occurred_at: now,
            token: None,
            document: Some(&result),
            context: None,
        }
        .render()?;
        let began = tokio::time::Instant::now();
        let outcome = sender.send(&Prepared { url, key, body, authentication: None }, now).await;
        let took: Duration = began.elapsed();
        match outcome {
            Outcome::Answered { status: status @ 200..=299, .. } => {
                println!("{status} after {took:.0?}: accepted");
                Ok(())
            }
            Outcome::Answered { status, signature_refused: true, .. } => Err(anyhow!(
                "{status} after {took:.0?}: the receiver refused our signature; does it have our JWKS?"
            )),
            Outcome::Answered { status, .. } => Err(anyhow!("{status} after {took:.0?}")),
            Outcome::AddressRefused => Err(anyhow!("the URL may not be called from here (guard)")),
            Outcome::AnswerRefused => {
                Err(anyhow!("the host resolves to an address that may not be called (guard)"))
            }
            Outcome::Failed(reason) | Outcome::OwnFault(reason) => {
                Err(anyhow!("{} ({} after {took:.0?})", reason.explain(), reason.as_str()))
            }
        }
    }
}
