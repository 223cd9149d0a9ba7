//! How fast the AdCP Python SDK's outbox goes out: its table, its states, its envelopes.

use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::bed::{Bed, RESULT_BYTES, result, tidy};
use super::figures::Quantiles;
use super::table::{Table, thousands};

/// Webhooks owed, and their destinations.
const SHAPES: [(usize, usize); 2] = [(20_000, 50), (5_000, 1)];
const PATIENCE: Duration = Duration::from_secs(600);
/// The key of the SDK's process, as a file has it.
const KEY: [u8; 32] = [7; 32];

pub async fn sealed(starts: usize) -> Table {
    let mut table = Table::new(
        "The SDK's outbox: 1 KB results, signed, TLS",
        &["owed", "destinations", "starts", "webhooks/s, median", "lowest"],
    );
    for (owed, destinations) in SHAPES {
        let mut bed = Bed::new(destinations).await;
        let client = bed.client().await;
        client.batch_execute(SCHEMA).await.unwrap();
        client.execute(WATCH, &[]).await.unwrap();
        let key = bed.file("sdk.key", &KEY.map(|byte| format!("{byte:02x}")).concat());
        let settings = [
            ("TASKBELL_SOURCES__SEALED__TABLE", TABLE),
            ("TASKBELL_SOURCES__SEALED__KEY_FILES", key.to_str().unwrap()),
        ];
        let mut rates = Vec::new();
        for _ in 0..starts {
            owe(&bed, &client, owed).await;
            bed.receiver.forget();
            let daemon = bed.daemon(&settings).await;
            bed.receiver.wait_for(1, PATIENCE).await;
            let began = Instant::now();
            bed.receiver.wait_for(owed, PATIENCE).await;
            while client.query_one(WAITING, &[]).await.unwrap().get(0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            rates.push(owed as f64 / began.elapsed().as_secs_f64());
            daemon.stop();
        }
        let rates = Quantiles::of(rates);
        let cells = [owed as f64, destinations as f64, starts as f64, rates.median(), rates.lowest()];
        table.row(cells.map(thousands));
    }
    table
}

/// So many rows as the SDK would have written them, round the destinations, and nothing else.
async fn owe(bed: &Bed, client: &Client, many: usize) {
    client.batch_execute("TRUNCATE adcp_task_webhook_outbox").await.unwrap();
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).unwrap());
    let result: Value = serde_json::from_str(&result(RESULT_BYTES)).unwrap();
    let (mut tasks, mut urls, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bodies, mut nonces) = (Vec::new(), Vec::new());
    for n in 0..many {
        let (task, key) = (format!("task_{n}"), format!("whk_{n:032}"));
        let url = format!("https://localhost:{}/ok", bed.receiver.ports[n % bed.receiver.ports.len()]);
        let body = json!({ "idempotency_key": key, "operation_id": "op_1", "task_id": task,
                           "task_type": "create_media_buy", "status": "completed",
                           "timestamp": "2026-04-18T14:00:00Z", "result": result });
        let bound = json!(["acct", task, "create_media_buy", "completed", url, "op_1", key]).to_string();
        let mut body = body.to_string().into_bytes();
        let mut nonce = [0; 12];
        aws_lc_rs::rand::fill(&mut nonce).unwrap();
        cipher.seal_in_place_append_tag(Nonce::from(&nonce), Aad::from(bound), &mut body).unwrap();
        tasks.push(task);
        urls.push(url);
        keys.push(key);
        bodies.push(body);
        nonces.push(nonce.to_vec());
    }
    client.execute(ROWS, &[&tasks, &urls, &keys, &bodies, &nonces]).await.unwrap();
    tidy(client).await;
}

const TABLE: &str = "adcp_task_webhook_outbox";
const SCHEMA: &str = include_str!("../../tests/it/support/sdk_outbox.sql");
const WATCH: &str = "SELECT taskbell.watch('adcp_task_webhook_outbox', 'adcp-python-outbox')";
const WAITING: &str =
    "SELECT EXISTS (SELECT FROM adcp_task_webhook_outbox WHERE state IN ('pending', 'in_flight'))";
const ROWS: &str = "INSERT INTO adcp_task_webhook_outbox (task_id, task_type, terminal_status, url, operation_id,
        idempotency_key, account_id, encrypted_body, envelope_nonce, retry_horizon_seconds)
    SELECT task, 'create_media_buy', 'completed', url, 'op_1', key, 'acct', body, nonce, 86400
    FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bytea[]) AS r(task, url, key, body, nonce)";
