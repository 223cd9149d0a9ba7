"""A seller on the official AdCP Python SDK: its registry, its outbox and its own worker.

    seller.py serve DSN       one JSON command a line on stdin, one JSON answer a line on stdout
    seller.py worker DSN N    N of the SDK's delivery loops, until killed

The key material is public and fixed, so that another deliverer can be pointed at the same rows.
"""

import asyncio
import json
import sys

from adcp.decisioning import PgTaskRegistry, WebhookSenderResolution
from adcp.decisioning.pg.task_webhook_outbox import PgTaskWebhookOutbox
from adcp.decisioning.task_registry import TaskWebhookAuthentication
from adcp.webhook_sender import WebhookSender
from psycopg_pool import AsyncConnectionPool

ENCRYPTION_KEY = bytes(range(32))
# RFC 8037, appendix A.
SIGNING_KEY = {
    "kty": "OKP", "crv": "Ed25519", "kid": "shared", "alg": "EdDSA", "use": "sig",
    "key_ops": ["verify"], "adcp_use": "webhook-signing",
    "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
}
DAY = 86_400


class Outbox(PgTaskWebhookOutbox):
    """As shipped, but allowed to deliver to the test's receiver on the loopback."""

    @staticmethod
    def _validate_delivery_sender(sender):
        return None


class Tenants:
    """Every signing scope has the one key."""

    async def resolve(self, scope):
        return WebhookSenderResolution(sender=sender(), advertised_algorithms=frozenset({"ed25519"}))


def sender():
    return WebhookSender.from_jwk(SIGNING_KEY, allow_private_destinations=True)


def registry(pool, scoped):
    common = dict(pool=pool, encryption_key=ENCRYPTION_KEY, delivery_retry_horizon_seconds=DAY,
                  lease_seconds=16, legacy_hmac_fallback=True)
    if scoped:
        outbox = Outbox(sender_resolver=Tenants(), **common)
        return outbox, PgTaskRegistry(pool=pool, task_webhook_outbox=outbox,
                                      webhook_signing_scope_resolver=lambda context: "unused")
    outbox = Outbox(sender=sender(), **common)
    return outbox, PgTaskRegistry(pool=pool, task_webhook_outbox=outbox)


async def serve(pool):
    outbox, plain = registry(pool, scoped=False)
    _, scoped = registry(pool, scoped=True)

    async def issue(url, account="acct", task_type="create_media_buy", operation_id="op_1", token=None,
                    scheme=None, credentials=None, scope=None, context=None):
        authentication = scheme and TaskWebhookAuthentication(scheme=scheme, credentials=credentials)
        return await (scoped if scope else plain).issue(
            account_id=account, task_type=task_type, request_context=context, webhook_url=url,
            webhook_operation_id=url and operation_id, webhook_token=token,
            webhook_authentication=authentication, webhook_signing_scope_id=scope)

    async def settle(task_id, result=None, error=None, scope=None):
        registry = scoped if scope else plain
        await (registry.complete(task_id, result) if error is None else registry.fail(task_id, error))

    async def bulk(url, count):
        async def one(n):
            await settle(await issue(f"{url}/{n}", operation_id=f"op_{n}"), {"n": n})
        for first in range(0, count, 50):
            await asyncio.gather(*(one(n) for n in range(first, min(first + 50, count))))
        return count

    async def setup():
        await plain.create_schema()
        await outbox.create_schema()

    commands = {"setup": setup, "issue": issue, "settle": settle, "bulk": bulk,
                "get": lambda task_id: plain.get(task_id),
                "progress": lambda task_id, progress: plain.update_progress(task_id, progress)}
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        try:
            answer = {"ok": await commands[command.pop("do")](**command)}
        except Exception as error:  # The test wants to see it.
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, default=str), flush=True)


async def main():
    what, dsn, *rest = sys.argv[1:]
    async with AsyncConnectionPool(dsn, min_size=1, max_size=12, open=False) as pool:
        if what == "serve":
            print(json.dumps({"ok": "ready"}), flush=True)
            await serve(pool)
        else:
            outbox, _ = registry(pool, scoped=False)
            print(json.dumps({"ok": "working"}), flush=True)
            await asyncio.gather(*(outbox.run_worker(poll_interval=0.2) for _ in range(int(rest[0]))))


asyncio.run(main())
