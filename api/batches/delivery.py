"""Delivering webhooks, signed as https://www.standardwebhooks.com says; any 2xx answer is an arrival."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ssl
import time

import httpcore2
import structlog

from scheduler.outbound import ForbiddenAddress, PublicOnly, check_url
from scheduler.outbox import Outbox, Webhook

log = structlog.get_logger()

TIMEOUT_S = 10.0
GONE = 410
_SECRET_PREFIX = "whsec_"


def secret_bytes(secret: str) -> bytes:
    """The key in a `whsec_…` secret. Raises ValueError."""
    if not secret.startswith(_SECRET_PREFIX):
        raise ValueError(f"a webhook secret begins with {_SECRET_PREFIX}")
    return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)


def signed_headers(message: Webhook, secret: str, now_s: int) -> dict[str, str]:
    """The three headers that a receiver checks."""
    signed = f"{message.id}.{now_s}.{message.payload}".encode()
    digest = hmac.new(secret_bytes(secret), signed, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": message.id, "webhook-timestamp": str(now_s), "webhook-signature": signature}


class Delivery:
    """Sends what is due, each to an address that its check allows."""

    def __init__(self, outbox: Outbox, secret: str | None, trusted: frozenset[str]) -> None:
        self._outbox = outbox
        self._secret = secret
        self._trusted = trusted

    async def deliver(self) -> int:
        """One attempt for every message that is due; return how many. Raises RecordUnavailable."""
        if self._secret is None:
            return 0
        due = await self._outbox.claim()
        await asyncio.gather(*(self._attempt(message, self._secret) for message in due))
        return len(due)

    async def _attempt(self, message: Webhook, secret: str) -> None:
        try:
            check_url(message.url, self._trusted)
            async with asyncio.timeout(TIMEOUT_S):
                status = await self._post(message, secret)
        except ForbiddenAddress as error:
            await self._outbox.failed(message, str(error), for_ever=True)
            log.warning("webhook refused", id=message.id, error=str(error))
        except (
            OSError,
            TimeoutError,
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.TimeoutException,
        ) as e:
            await self._outbox.failed(message, str(e) or type(e).__name__)
        else:
            if 200 <= status < 300:
                await self._outbox.delivered(message)
            else:
                await self._outbox.failed(message, f"HTTP {status}", for_ever=status == GONE)

    async def _post(self, message: Webhook, secret: str) -> int:
        headers = {"content-type": "application/json", "user-agent": "mlx-farm"}
        headers |= signed_headers(message, secret, int(time.time()))
        async with httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(), network_backend=PublicOnly(self._trusted), keepalive_expiry=0
        ) as pool:
            content = message.payload.encode()
            async with pool.stream("POST", message.url, headers=list(headers.items()), content=content) as response:
                return int(response.status)
