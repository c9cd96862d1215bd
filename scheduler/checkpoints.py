"""How far a log in Redis is in SQL: moved in the transaction that brings its entries, so that each counts once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from scheduler.database import record_errors
from scheduler.errors import FarmError, QueueUnavailable, RecordUnavailable
from scheduler.tables import CheckpointRow

log = structlog.get_logger()

SHORTEST_S, LONGEST_S = 0.1, 2.0
"""Between two tries while Redis or SQL is away."""

BEGINNING = "0-0"
"""The position before the first entry."""


class CheckpointMoved(FarmError):
    """Another projector has committed this range first; read on from its checkpoint."""


class Checkpoint:
    """The position of one log: the id of the last entry that is in SQL."""

    def __init__(self, engine: AsyncEngine, name: str) -> None:
        self._engine = engine
        self._name = name

    async def position(self) -> str:
        """BEGINNING where nothing has been brought yet. Raises RecordUnavailable."""
        query = select(CheckpointRow.position).where(CheckpointRow.name == self._name)
        async with record_errors(), self._engine.connect() as connection:
            return (await connection.execute(query)).scalar_one_or_none() or BEGINNING

    async def move(self, connection: AsyncConnection, old: str, new: str) -> None:
        """From `old`, in the caller's transaction. Raises CheckpointMoved where it is not there any more."""
        if old == BEGINNING:
            try:
                await connection.execute(insert(CheckpointRow).values(name=self._name, position=new))
            except IntegrityError as error:
                raise CheckpointMoved(self._name) from error
            return
        here = (CheckpointRow.name == self._name, CheckpointRow.position == old)
        moved = await connection.execute(update(CheckpointRow).where(*here).values(position=new))
        if moved.rowcount != 1:
            raise CheckpointMoved(self._name)


async def project_for_ever(step: Callable[[], Awaitable[Any]], **about: Any) -> None:
    """Take step after step; an outage of Redis or SQL only delays it. `about` goes into the log."""
    delay_s = SHORTEST_S
    while True:
        try:
            await step()
            delay_s = SHORTEST_S
        except CheckpointMoved:
            continue
        except (QueueUnavailable, RecordUnavailable) as error:
            log.warning("projection waits", error=str(error), **about)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_S)
