// The same webhook as a graphile-worker task: signed after RFC 9421, POSTed over kept connections.
// --install makes its schema and ends; --batched uses its local queue and batched completion; --async-commit does not wait
// for the disk.
import { createHash, generateKeyPairSync, randomBytes, sign } from "node:crypto";
import { run, runMigrations } from "graphile-worker";
import { Agent, request } from "undici";

const dsn = Object.fromEntries(
  [...process.env.PEER_DSN.matchAll(/(\w+)=('([^']*)'|\S+)/g)].map((m) => [m[1], m[3] ?? m[2]]),
);
const session = process.argv.includes("--async-commit") ? "-c synchronous_commit=off" : "";
const connectionString =
  `postgres:///${dsn.dbname}?host=${encodeURIComponent(dsn.host)}&port=${dsn.port}&user=${dsn.user}` +
  `&options=${encodeURIComponent(session)}`;
if (process.argv.includes("--install")) {
  await runMigrations({ connectionString });
  process.exit(0);
}

const { privateKey } = generateKeyPairSync("ed25519");
// As long as our own client keeps them.
const dispatcher = new Agent({ connections: 8, pipelining: 1, keepAliveTimeout: 15_000 });

async function deliver(job) {
  const body = JSON.stringify({
    idempotency_key: job.idempotency_key,
    operation_id: `op_${job.task_id}`,
    task_id: job.task_id,
    task_type: "create_media_buy",
    protocol: "media-buy",
    status: "completed",
    timestamp: job.timestamp,
    result: job.result,
  });
  const digest = `sha-256=:${createHash("sha256").update(body).digest("base64")}:`;
  const created = Math.floor(Date.now() / 1000);
  const covered =
    `("@method" "@target-uri" "@authority" "content-type" "content-digest");created=${created};` +
    `expires=${created + 300};nonce="${randomBytes(16).toString("base64url")}";keyid="k";alg="ed25519";` +
    `tag="adcp/webhook-signing/v1"`;
  const base = [
    `"@method": POST`,
    `"@target-uri": ${job.url}`,
    `"@authority": ${new URL(job.url).host}`,
    `"content-type": application/json`,
    `"content-digest": ${digest}`,
    `"@signature-params": ${covered}`,
  ].join("\n");
  const signature = sign(null, Buffer.from(base), privateKey).toString("base64url");
  const answer = await request(job.url, {
    method: "POST",
    body,
    dispatcher,
    headers: {
      "content-type": "application/json",
      "content-digest": digest,
      "signature-input": `sig1=${covered}`,
      signature: `sig1=:${signature}:`,
    },
  });
  await answer.body.dump();
  if (answer.statusCode >= 300) throw new Error(`HTTP ${answer.statusCode}`);
}

const batched = process.argv.includes("--batched");
const worker = batched
  ? { localQueue: { size: 500 }, completeJobBatchDelay: 5, failJobBatchDelay: 5 }
  : {};
const runner = await run({
  connectionString,
  // With 64, 128 or 384 it makes less.
  concurrency: 24,
  pollInterval: 1000,
  taskList: { deliver },
  preset: { worker },
});
await runner.promise;
