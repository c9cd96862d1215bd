"""Webhooks that are to be delivered: written in the transaction of what they tell, delivered at least once.

Delivering claims an attempt first, so that of two senders one goes on; a sender that dies leaves it to the next time.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from ulid import ULID

from scheduler.database import record_errors
from scheduler.tables import WebhookRow

WAITS_S = (5, 30, 300, 1800, 7200, 28_800, 86_400)
"""Before each further attempt (a fifth more or less); after the last one it is given up."""

KEPT_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Webhook:
    """One message: `payload` is its JSON text, the same at every attempt."""

    id: str
    tenant: str
    url: str
    payload: str
    attempts: int = 0


def webhook(tenant: str, url: str, kind: str, data: dict[str, Any]) -> Webhook:
    """A new message, in OpenAI's form."""
    event = {"id": f"evt_{ULID()}", "object": "event", "created_at": _now_ms() // 1000, "type": kind, "data": data}
    return Webhook(str(event["id"]), tenant, url, orjson.dumps(event).decode())


async def add_webhook(connection: AsyncConnection, message: Webhook) -> None:
    """To be delivered once the caller's transaction is committed."""
    await connection.execute(
        insert(WebhookRow).values(
            id=message.id,
            tenant=message.tenant,
            url=message.url,
            payload=message.payload,
            attempts=0,
            created_ms=_now_ms(),
            due_ms=_now_ms(),
        )
    )


class Outbox:
    """All methods raise RecordUnavailable when the database does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def claim(self, limit: int = 20) -> list[Webhook]:
        """Messages that are due, each with one attempt more; this caller delivers them."""
        table = WebhookRow.__table__
        due = select(table).where(table.c.due_ms <= _now_ms()).order_by(table.c.due_ms).limit(limit)
        claimed: list[Webhook] = []
        async with record_errors(), self._engine.connect() as connection:
            rows = (await connection.execute(due)).all()
        for row in rows:
            async with record_errors(), self._engine.begin() as connection:
                done = await connection.execute(
                    update(WebhookRow)
                    .where(WebhookRow.id == row.id, WebhookRow.attempts == row.attempts, WebhookRow.due_ms.is_not(None))
                    .values(attempts=row.attempts + 1, due_ms=_next_ms(row.attempts))
                )
            if done.rowcount == 1:
                claimed.append(Webhook(row.id, row.tenant, row.url, row.payload, row.attempts + 1))
        return claimed

    async def delivered(self, message: Webhook) -> None:
        """It has arrived."""
        await self._set(message, due_ms=None, delivered_ms=_now_ms(), error=None)

    async def failed(self, message: Webhook, error: str, *, for_ever: bool = False) -> None:
        """It has not; it is tried again at its time, unless that would not help."""
        ended = {"due_ms": None} if for_ever or message.attempts > len(WAITS_S) else {}
        await self._set(message, error=error[:500], **ended)

    async def forget(self) -> int:
        """Remove what is done and old."""
        gone = delete(WebhookRow).where(WebhookRow.due_ms.is_(None))
        async with record_errors(), self._engine.begin() as connection:
            done = await connection.execute(gone.where(WebhookRow.created_ms < _now_ms() - KEPT_S * 1000))
        return done.rowcount

    async def _set(self, message: Webhook, **values: Any) -> None:
        async with record_errors(), self._engine.begin() as connection:
            await connection.execute(update(WebhookRow).where(WebhookRow.id == message.id).values(**values))


def _next_ms(attempts: int) -> int:
    """When to try again, should this attempt end without a word."""
    wait_s = WAITS_S[min(attempts, len(WAITS_S) - 1)]
    return _now_ms() + round(wait_s * 1000 * random.uniform(0.8, 1.2))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
