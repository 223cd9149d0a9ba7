//! The daemon's client, without the daemon: signs and POSTs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use taskbell::daemon::database::tls_config;
use taskbell::task::{CallbackUrl, UrlSchemes};
use taskbell::webhook::{
    GuardPolicy, IdempotencyKey, KeyRing, LegacyModes, Outcome, Prepared, Sender, SenderOptions, Signer,
    SigningAlgorithm, SigningKey, TraceContext,
};

use super::bed::{Bed, result};

#[derive(Clone)]
pub struct Posting {
    sender: Sender,
    signer: Arc<Signer>,
}

impl Posting {
    pub fn to(bed: &Bed) -> Self {
        let sender = Sender::new(
            tls_config(Some(bed.certificate.path())).unwrap(),
            GuardPolicy { allow_private: true, ..GuardPolicy::default() },
            &SenderOptions::default(),
        )
        .unwrap();
        let key = SigningKey::generate(SigningAlgorithm::Ed25519, Some("bench")).unwrap();
        let signer = Arc::new(Signer::new(KeyRing::new(vec![key]).unwrap(), LegacyModes::default()));
        Self { sender, signer }
    }

    /// One webhook with a result of so many bytes, until it is accepted.
    pub async fn post(&self, task: &str, port: u16, bytes: usize) {
        let key = format!("whk_{}", uuid::Uuid::new_v4());
        let body = format!(
            r#"{{"idempotency_key":"{key}","operation_id":"op_{task}","task_id":"{task}","task_type":"create_media_buy","protocol":"media-buy","status":"completed","timestamp":"2026-01-01T00:00:00Z","result":{}}}"#,
            result(bytes)
        );
        let prepared = Prepared {
            url: CallbackUrl::parse(&format!("https://localhost:{port}/ok"), UrlSchemes::HttpsOnly).unwrap(),
            key: IdempotencyKey::parse(&key).unwrap(),
            body: Bytes::from(body),
            authentication: None,
            signing_scope: None,
        };
        let trace = TraceContext::of(&prepared.key, uuid::Uuid::new_v4());
        let deadline = Duration::from_secs(30);
        let sent = self.sender.send(&prepared, &self.signer, trace, SystemTime::now(), deadline).await;
        assert!(matches!(sent, Outcome::Answered { status: 200, .. }), "{sent:?}");
    }
}
