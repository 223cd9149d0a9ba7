// A seller on the AdCP TypeScript SDK. The SDK's table has no place for a buyer's callback, so
// the callback is registered beside the task, in the same transaction: nothing is lost by a crash.
//
//   npm install @adcp/sdk pg
//   DATABASE_URL=postgres://… node typescript_seller.mjs https://buyer.example/hook

import { createPostgresTaskRegistry, getDecisioningTaskRegistryMigration } from '@adcp/sdk/server';
import pg from 'pg';

const callback = process.argv[2];
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });

// Once, when the server is installed (or `taskbell watch add adcp_decisioning_tasks --profile adcp-typescript`).
await pool.query(getDecisioningTaskRegistryMigration());
await pool.query("SELECT taskbell.watch('adcp_decisioning_tasks', 'adcp-typescript')");

// A buyer's create_media_buy needs a person: answer `submitted`, with this id.
async function submit(accountId, pushNotificationConfig) {
  const client = await pool.connect();
  try {
    await client.query('BEGIN');
    const registry = createPostgresTaskRegistry({ pool: client });
    const { taskId } = await registry.create({ tool: 'create_media_buy', accountId, hasWebhook: true });
    await client.query('SELECT taskbell.register_webhook($1, $2)', [taskId, pushNotificationConfig]);
    await client.query('COMMIT');
    return taskId;
  } catch (error) {
    await client.query('ROLLBACK'); // nothing was stored: refuse the buyer's request
    throw error;
  } finally {
    client.release();
  }
}

const taskId = await submit('acct_42', { url: callback, operation_id: 'op_typescript' });
console.log(`submitted ${taskId}`);

// Hours later, in the back office: the commit rings the buyer.
const registry = createPostgresTaskRegistry({ pool });
await registry.updateProgress(taskId, { percentage: 50, message: 'legal review' });
await registry.complete(taskId, { media_buy_id: 'mb_1' });
console.log((await registry.getTask(taskId)).status);
await pool.end();
