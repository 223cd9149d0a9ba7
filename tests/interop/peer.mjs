// A buyer's endpoint and a seller, both made of the AdCP TypeScript SDK.
//
// The first line of stdin configures the endpoint; the first line of stdout says where it listens
// and which keys the seller has. After that each line of stdin is a webhook to send. One line of
// stdout answers each webhook that arrived and each that was sent. Ends when stdin does.

import { generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const sdk = createRequire(`${process.env.INTEROP_NODE}/`);
const { createWebhookVerifier, StaticJwksResolver } = sdk('@adcp/sdk/signing/server');
const { createWebhookEmitter } = sdk('@adcp/sdk/server');
const { SingleAgentClient, MCPWebhookPayloadSchema } = sdk('@adcp/sdk');

const say = line => process.stdout.write(JSON.stringify(line) + '\n');
console.log = () => {}; // the SDK logs, and stdout is for our lines

// The SDK has a receive path for HMAC, and for signatures a verifier alone.
async function receive(request, { verify, client }) {
  if (request.headers['x-adcp-signature']) {
    const answer = {};
    const response = { writeHead: status => (answer.status = status), end: () => {} };
    await client.createWebhookHandler()(request, response);
    return answer;
  }
  let sender;
  try {
    sender = (await verify(request)).keyid;
  } catch (error) {
    return { status: 401, challenge: `Signature error="${error.code}"`, reason: error.message };
  }
  const parsed = MCPWebhookPayloadSchema.safeParse(JSON.parse(request.body));
  return { status: parsed.success ? 200 : 400, sender, payload: parsed.data, reason: parsed.error?.message };
}

async function endpoint({ certificate, key, jwks, secret }) {
  const agent = { id: 'seller', name: 'seller', agent_uri: 'https://seller.example/mcp', protocol: 'mcp' };
  const buyer = {
    verify: createWebhookVerifier({ jwks: new StaticJwksResolver(jwks.keys) }),
    client: new SingleAgentClient(agent, { webhookSecret: secret }),
  };
  const tls = { cert: readFileSync(certificate), key: readFileSync(key) };
  const server = createServer(tls, async (request, response) => {
    const chunks = await request.toArray();
    const { method, headers } = request;
    const url = `https://${headers.host}${request.url}`;
    const answer = await receive({ method, url, headers, body: Buffer.concat(chunks).toString() }, buyer);
    response.writeHead(answer.status, answer.challenge && { 'WWW-Authenticate': answer.challenge }).end();
    say(answer);
  });
  await new Promise(listening => server.listen(0, '127.0.0.1', listening));
  return server.address().port;
}

const keys = {
  ed25519: { kid: 'ts-ed', alg: 'EdDSA', pair: generateKeyPairSync('ed25519') },
  'ecdsa-p256-sha256': { kid: 'ts-ec', alg: 'ES256', pair: generateKeyPairSync('ec', { namedCurve: 'P-256' }) },
};
const published = Object.values(keys).map(({ kid, alg, pair }) => ({
  ...pair.publicKey.export({ format: 'jwk' }), kid, alg, use: 'sig', key_ops: ['verify'], adcp_use: 'webhook-signing',
}));

async function send({ mode, url, credentials }) {
  const alg = keys[mode] ? mode : 'ed25519';
  const signerKey = { keyid: keys[alg].kid, alg, privateKey: keys[alg].pair.privateKey.export({ format: 'jwk' }) };
  const authentication = {
    Bearer: { type: 'bearer', token: credentials },
    'HMAC-SHA256': { type: 'hmac_sha256', secret: credentials },
  }[mode];
  const emitter = createWebhookEmitter({ signerKey, retries: { maxAttempts: 1 }, suppressLegacyWarnings: true });
  const payload = {
    operation_id: 'op_1',
    task_id: 'task_1',
    task_type: 'create_media_buy',
    status: 'completed',
    timestamp: new Date().toISOString(),
    result: { media_buy_id: 'mb_☃' },
  };
  const sent = await emitter.emit({ url, payload, operation_id: url, authentication });
  return { status: sent.final_status, errors: sent.errors };
}

const lines = createInterface({ input: process.stdin });
const orders = lines[Symbol.asyncIterator]();
const port = await endpoint(JSON.parse((await orders.next()).value));
say({ port, jwks: { keys: published } });
for await (const line of orders) say(await send(JSON.parse(line)));
process.exit();
