"""A seller on the AdCP Python SDK, with its durable outbox. Taskbell delivers what the SDK owes:

    [sources.sealed]
    table = "adcp_task_webhook_outbox"
    key_files = ["…"]        # the encryption key below

    pip install 'adcp[pg]'
    DATABASE_URL=postgres://… ENCRYPTION_KEY=<64 hex digits> SIGNING_KEY=key.jwk \\
        python python_seller.py https://buyer.example/hook

Nothing in the seller changes; it only need not run the SDK's own worker (it may, at the same time).
The key is made by `taskbell keys generate key.jwk --adcp-use webhook-signing`, which both take.
"""

import asyncio
import json
import os
import sys

from adcp.decisioning import PgTaskRegistry
from adcp.decisioning.pg.task_webhook_outbox import PgTaskWebhookOutbox
from adcp.webhook_sender import WebhookSender
from psycopg_pool import AsyncConnectionPool


async def main(callback):
    with open(os.environ["SIGNING_KEY"]) as file:
        sender = WebhookSender.from_jwk(json.load(file))
    async with AsyncConnectionPool(os.environ["DATABASE_URL"], open=False) as pool:
        outbox = PgTaskWebhookOutbox(
            pool=pool,
            sender=sender,
            encryption_key=bytes.fromhex(os.environ["ENCRYPTION_KEY"]),
            delivery_retry_horizon_seconds=86_400,
        )
        registry = PgTaskRegistry(pool=pool, task_webhook_outbox=outbox)
        # Once, when the server is installed.
        await registry.create_schema()
        await outbox.create_schema()

        # A buyer's create_media_buy needs a person: answer `submitted`, with this id.
        task_id = await registry.issue(
            account_id="acct_42",
            task_type="create_media_buy",
            webhook_url=callback,
            webhook_operation_id="op_python",
        )
        print("submitted", task_id)

        # Hours later, in the back office: the commit owes the webhook.
        await registry.update_progress(task_id, {"percentage": 50, "current_step": "legal review"})
        await registry.complete(task_id, {"media_buy_id": "mb_1"})
        print((await registry.get(task_id))["state"])


asyncio.run(main(sys.argv[1]))
