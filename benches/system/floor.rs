//! What no daemon can do better on this machine: a commit that notifies, and a listener that POSTs what it
//! hears at once, without an outbox, a claim or anything to settle.

use tokio_postgres::{AsyncMessage, Client, NoTls};

use super::bed::{Bed, RESULT_BYTES, fill};
use super::posting::Posting;

/// A listener; it ends when this is dropped.
pub struct Floor(tokio::task::JoinHandle<()>);

pub const TABLE: &str = "floor_tasks";

impl Floor {
    pub async fn start(bed: &Bed, client: &Client, tasks: i64) -> Self {
        client.batch_execute(SCHEMA).await.unwrap();
        fill(client, TABLE, "task_", tasks).await;
        let (listener, mut connection) = tokio_postgres::connect(&bed.dsn, NoTls).await.unwrap();
        let (posting, ports) = (Posting::to(bed), bed.receiver.ports.clone());
        let listening = tokio::spawn(async move {
            let mut turn = 0;
            while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                let AsyncMessage::Notification(said) = message else { continue };
                turn += 1;
                let (posting, port) = (posting.clone(), ports[turn % ports.len()]);
                tokio::spawn(async move { posting.post(said.payload(), port, RESULT_BYTES).await });
            }
        });
        listener.batch_execute("LISTEN floor").await.unwrap();
        // The connection ends with its client.
        Self(tokio::spawn(async move {
            let _listener = listener;
            let _ = listening.await;
        }))
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

const SCHEMA: &str = "
    DROP TABLE IF EXISTS floor_tasks;
    CREATE TABLE floor_tasks (LIKE decisioning_tasks INCLUDING ALL);
    CREATE OR REPLACE FUNCTION floor() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_notify(''floor'', new.task_id); RETURN NULL; END';
    CREATE TRIGGER floor AFTER UPDATE ON floor_tasks FOR EACH ROW EXECUTE FUNCTION floor()";
