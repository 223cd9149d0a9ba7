//! Rows owed, as a claim sees them: without sellers, and without a daemon.

use std::collections::HashMap;
use std::time::Duration;

use taskbell::outbox::{Claim, NativeOutbox, Outbox, Room, Settlement, Verdict};
use taskbell::webhook::FailureReason;
use tokio_postgres::Client;

/// Rows owed by an account at a host, without the detour over tasks.
pub async fn owe(client: &Client, host: &str, account: &str, rows: i64) {
    let sql = "
        WITH task AS (
            SELECT format('%s.%s.%s', $1::text, $2::text, n + (SELECT coalesce(max(id), 0) FROM taskbell.outbox)) AS id
            FROM generate_series(1, $3::bigint) n),
        registered AS (
            INSERT INTO taskbell.registration (watch_id, task_id, account_id, task_type, url, operation_id, lane)
            SELECT 1, id, $2, 'create_media_buy', 'https://' || $1 || '/', 'op', 'https://' || $1 || ':443' FROM task)
        INSERT INTO taskbell.outbox (watch_id, task_id, account_id, task_type, from_state, to_state, lane, idempotency_key, document)
        SELECT 1, id, $2, 'create_media_buy', 'working', 'completed', 'https://' || $1 || ':443', gen_random_uuid(), '{}' FROM task";
    client.execute(sql, &[&host, &account, &rows]).await.unwrap();
}

pub fn room(rows: usize) -> Room {
    Room::of(rows, 8)
}

pub async fn claim(outbox: &NativeOutbox, rows: usize) -> Vec<Claim> {
    outbox.claim(&room(rows)).await.unwrap().claims
}

pub async fn settle(
    outbox: &NativeOutbox,
    claims: &[Claim],
    verdict: Verdict,
    reason: Option<FailureReason>,
) {
    let settlements: Vec<Settlement> = claims
        .iter()
        .map(|claim| Settlement { row: claim.row, lease: claim.lease, verdict, reason, attempt: None })
        .collect();
    assert!(outbox.settle(&settlements).await.unwrap().lost.is_empty());
}

pub async fn fail(outbox: &NativeOutbox, claims: &[Claim]) {
    let verdict = Verdict::Release { after: Duration::ZERO };
    settle(outbox, claims, verdict, Some(FailureReason::Timeout)).await;
}

pub async fn succeed(outbox: &NativeOutbox, claims: &[Claim]) {
    settle(outbox, claims, Verdict::Acknowledge, None).await;
}

pub fn hosts(claims: &[Claim]) -> HashMap<String, usize> {
    let mut hosts = HashMap::new();
    for claim in claims {
        *hosts.entry(claim.lane.0.replace("https://", "").replace(":443", "")).or_default() += 1;
    }
    hosts
}
