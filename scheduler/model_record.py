"""What node agents decided about models, for good: from the log in Redis to the table `model_events`, and out of it.

Any number may project: the checkpoint is moved in the transaction that writes the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import structlog
from redis.asyncio import Redis
from sqlalchemy import delete, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.checkpoints import Checkpoint, project_for_ever
from scheduler.database import record_errors
from scheduler.events import stream_position
from scheduler.model_events import KEPT, KEY
from scheduler.outages import redis_errors
from scheduler.tables import ModelEventRow, ProjectionErrorRow

log = structlog.get_logger()

BATCH_EVENTS = 500

NO_SHARD = -1
"""In `projection_errors`: the log is the farm's, not a shard's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEventFilter:
    """Which events are wanted; None: of all. `until_ms` is the first moment after."""

    model: str | None = None
    agent: str | None = None
    event: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None


class ModelRecord:
    """Projects the log of model events, and answers from the table."""

    def __init__(self, redis: Redis, engine: AsyncEngine) -> None:
        self._redis = redis
        self._engine = engine
        self._checkpoint = Checkpoint(engine, "model-events")

    async def run(self) -> None:
        """Project for ever; an outage only delays it."""
        await project_for_ever(partial(self.step, block_ms=1000), log="model events")

    async def step(self, block_ms: int | None = None) -> int:
        """Bring the next events into SQL; how many (0: the log is at its end).

        Raises CheckpointMoved, QueueUnavailable, RecordUnavailable; nothing is half done then.
        """
        position = await self._checkpoint.position()
        async with redis_errors():
            answer = await self._redis.xread({KEY: position}, count=BATCH_EVENTS, block=block_ms)
        if not answer:
            return 0
        entries = answer[0][1]
        rows, malformed = _decode(entries)
        async with record_errors(), self._engine.begin() as connection:
            await self._checkpoint.move(connection, position, entries[-1][0].decode())
            if rows:
                await connection.execute(insert(ModelEventRow), rows)
            if malformed:
                log.error("model events could not be projected", events=[row["event_id"] for row in malformed])
                await connection.execute(insert(ProjectionErrorRow), malformed)
        if len(entries) < BATCH_EVENTS:  # what came meanwhile is newer than all that goes now
            async with redis_errors():
                await self._redis.xtrim(KEY, maxlen=KEPT, approximate=True)
        return len(entries)

    async def forget(self, before_ms: int) -> int:
        """Remove events before a moment; how many. Raises RecordUnavailable."""
        async with record_errors(), self._engine.begin() as connection:
            return (await connection.execute(delete(ModelEventRow).where(ModelEventRow.at_ms < before_ms))).rowcount


async def recorded_model_events(
    engine: AsyncEngine, wanted: ModelEventFilter, *, before: tuple[int, int] | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """The newest events, or those before a place (at_ms, seq), newest first. Raises RecordUnavailable."""
    table = ModelEventRow.__table__
    query = select(table).order_by(table.c.at_ms.desc(), table.c.seq.desc()).limit(limit)
    for name in ("model", "agent", "event"):
        if (value := getattr(wanted, name)) is not None:
            query = query.where(table.c[name] == value)
    if wanted.since_ms is not None:
        query = query.where(table.c.at_ms >= wanted.since_ms)
    if wanted.until_ms is not None:
        query = query.where(table.c.at_ms < wanted.until_ms)
    if before is not None:
        query = query.where(tuple_(table.c.at_ms, table.c.seq) < before)
    async with record_errors(), engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(query)).mappings()]


def _decode(
    entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the table, and of what cannot be one."""
    rows: list[dict[str, Any]] = []
    malformed: list[dict[str, Any]] = []
    for entry_id, fields in entries:
        at_ms, seq = stream_position(entry_id.decode())
        try:
            fact = orjson.loads(fields[b"d"])
            known = {name: str(fact.pop(name)) for name in ("agent", "event", "model")}
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raw = {"shard": NO_SHARD, "event_id": entry_id.decode(), "raw": repr(dict(fields))}
            malformed.append(raw | {"error": f"{type(error).__name__}: {error}"})
            continue
        rows.append({"at_ms": at_ms, "seq": seq, **known, "data": fact})
    return rows, malformed
