//! What must happen by itself once nothing is broken any more: everything owed settles.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

/// Waits until nothing is owed but dead letters, and lets the time pass that retries wait for.
/// How long it took, or what was left.
pub async fn recover(client: &Client) -> Result<Duration, String> {
    let began = Instant::now();
    while client.query_one(LEFT, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0) {
        if began.elapsed() > PATIENCE {
            let rows = client.query(WHAT_IS_LEFT, &[]).await.unwrap();
            let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            return Err(format!("a minute after the last fault there is still\n{}", rows.join("\n")));
        }
        client.batch_execute(PASS_TIME).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(began.elapsed())
}

const PATIENCE: Duration = Duration::from_secs(60);
const LEFT: &str =
    "SELECT count(*) FROM taskbell.outbox WHERE lane IS NULL OR state IN ('pending', 'in_flight')";
const PASS_TIME: &str = "UPDATE taskbell.outbox SET available_at = now() \
     WHERE state = 'pending' AND available_at > now() + interval '2 seconds'";
const WHAT_IS_LEFT: &str = "SELECT to_jsonb(o)::text FROM taskbell.outbox o \
     WHERE lane IS NULL OR state IN ('pending', 'in_flight') ORDER BY id LIMIT 5";
