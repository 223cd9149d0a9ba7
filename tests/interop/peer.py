"""A buyer's endpoint and a seller, both made of the AdCP Python SDK.

The first line of stdin configures the endpoint; the first line of stdout says where it listens
and which keys the seller has. After that each line of stdin is a webhook to send. One line of
stdout answers each webhook that arrived and each that was sent. Ends when stdin does.
"""

import asyncio
import json
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from adcp.server.idempotency import MemoryBackend, WebhookDedupStore
from adcp.signing import StaticJwksResolver, generate_signing_keypair
from adcp.webhook_receiver import LegacyHmacFallback, WebhookReceiver, WebhookReceiverConfig
from adcp.webhook_sender import WebhookSender
from adcp.webhooks import WebhookVerifyOptions


def say(**line):
    print(json.dumps(line), flush=True)


def endpoint(config):
    receiver = WebhookReceiver(
        WebhookReceiverConfig(
            verify_options=WebhookVerifyOptions(jwks_resolver=StaticJwksResolver(config["jwks"])),
            dedup=WebhookDedupStore(MemoryBackend(), ttl_seconds=86400),
            receiver_scope="buyer",
            publisher_scope_for=lambda signer: "seller",
            legacy_hmac=LegacyHmacFallback.from_shared_secret(
                secret=config["secret"].encode(), sender_identity="legacy"
            ),
        )
    )

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self):
            outcome = receiver.receive_and_process_sync(
                method=self.command,
                url=f"https://{self.headers['host']}{self.path}",
                headers=dict(self.headers),
                body=self.rfile.read(int(self.headers["content-length"])),
                handler=lambda payload: None,
            )
            self.send_response(outcome.http_status)
            for name, value in outcome.response_headers.items():
                self.send_header(name, value)
            self.end_headers()
            say(
                status=outcome.http_status,
                reason=outcome.rejection_reason,
                challenge=outcome.response_headers.get("WWW-Authenticate"),
                sender=outcome.sender_identity,
                duplicate=outcome.duplicate,
                payload=outcome.payload and outcome.payload.model_dump(mode="json", exclude_unset=True, exclude_none=False),
            )

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(config["certificate"], config["key"])
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


KEYS = {
    "ed25519": generate_signing_keypair(alg="ed25519", kid="py-ed", purpose="webhook-signing"),
    "ecdsa-p256-sha256": generate_signing_keypair(alg="es256", kid="py-ec", purpose="request-signing"),
}


def sender(order):
    secret, anywhere = order.get("credentials"), {"allow_private_destinations": True}
    if order["mode"] == "Bearer":
        return WebhookSender.from_bearer_token(secret, **anywhere)
    if order["mode"] == "HMAC-SHA256":
        return WebhookSender.from_adcp_legacy_hmac(secret.encode(), key_id="legacy", **anywhere)
    pem, jwk = KEYS[order["mode"]]
    return WebhookSender.from_pem(pem, key_id=jwk["kid"], alg=order["mode"], **anywhere)


async def send(order):
    async with sender(order) as webhooks:
        sent = await webhooks.send_mcp(
            url=order["url"],
            task_id="task_1",
            operation_id="op_1",
            task_type="create_media_buy",
            status="completed",
            result={"media_buy_id": "mb_☃"},
        )
    return sent.status_code


port = endpoint(json.loads(sys.stdin.readline()))
say(port=port, jwks={"keys": [jwk for _, jwk in KEYS.values()]})
for line in sys.stdin:
    say(status=asyncio.run(send(json.loads(line))))
