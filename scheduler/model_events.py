"""What node agents decided about models, in order: a log in Redis that every agent writes and operators read.

`{farm}:model-events` is a stream of JSON objects: at_ms, agent, event, model, and what belongs to the event. What is in
the record (model_record.py) is trimmed, but for the newest.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import orjson
from redis.asyncio import Redis

from scheduler.outages import redis_errors

KEY = "{farm}:model-events"
KEPT = 10_000
"""Entries, about, that stay once they are in the record."""

MOST = 200_000
"""Entries, about, that are kept where no scheduler brings them into the record."""


class ModelEvent(StrEnum):
    """The vocabulary."""

    KNOWN = "known"
    """It is in the catalogue of an agent, which has read its files."""
    LOADING = "loading"
    LOADED = "loaded"
    EVICTING = "evicting"
    """It gives up its place (why: idle, room, turn, grown, or by hand)."""
    UNLOADED = "unloaded"
    DIED = "died"
    """Its process; it is started again."""
    FAILED = "failed"
    """It is not tried again by itself."""
    HANDED_OVER = "handed_over"
    """Jobs that waited for a model that has failed, to the next one of their rule."""
    TURNED_AWAY = "turned_away"
    """Jobs that waited for a model that has failed."""
    PINNED = "pinned"
    """It does not give up its place any more; so from the start, where `by` is `settings`."""
    UNPINNED = "unpinned"
    CIRCUIT_OPENED = "circuit_opened"
    """A provider's model has failed again and again (why: how the last time), and is not asked for a while."""
    CIRCUIT_HALF_OPEN = "circuit_half_open"
    """One request tries it."""
    CIRCUIT_CLOSED = "circuit_closed"
    ORDERED = "ordered"
    """An operator has asked for something."""


class ModelEvents:
    """Append and read. Raises QueueUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def append(self, agent: str, event: ModelEvent, model: str, data: Mapping[str, Any]) -> None:
        """Tell one fact; its time is Redis' clock."""
        fact = orjson.dumps({"agent": agent, "event": event.value, "model": model, **data})
        async with redis_errors():
            await self._redis.xadd(KEY, {"d": fact}, maxlen=MOST, approximate=True)

    async def newest(self, limit: int, model: str | None = None) -> list[dict[str, Any]]:
        """The newest facts, newest first; of one model, or of all."""
        found: list[dict[str, Any]] = []
        before = "+"
        while len(found) < limit:
            async with redis_errors():
                entries = await self._redis.xrevrange(KEY, before, "-", count=500)
            if not entries:
                break
            for entry_id, fields in entries:
                text = entry_id.decode()
                fact = {"id": text, "at_ms": int(text.partition("-")[0]), **orjson.loads(fields[b"d"])}
                if model in (None, fact["model"]):
                    found.append(fact)
            before = f"({entries[-1][0].decode()}"
        return found[:limit]
