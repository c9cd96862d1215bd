"""Turns of conversations: the inputs that clients asked to keep. The job of the same id has, or will have, the answer.

A turn may go on from another one; its whole conversation is the chain back to the first. What an input says is for the
edge to know: here it is bytes. Turns are committed with their jobs (Store.accept) and forgotten with their results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import aliased

from scheduler.database import record_errors
from scheduler.jobs import JobState
from scheduler.requests import JobRequest
from scheduler.store import DurableJob, decode_frames
from scheduler.tables import DurableJobRow, JobRow, TurnRow

MOST_TURNS = 1000
"""A longer chain is cut off here; no context holds so many."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A kept input, and the job that answers it."""

    job: DurableJob
    previous_id: str | None
    input: bytes


class Turns:
    """All methods raise RecordUnavailable when the database does not answer; all know one tenant's turns only."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def get(self, tenant: str, turn_id: str) -> Turn | None:
        """One turn, or None."""
        turns = await self._chain(tenant, turn_id, 1)
        return turns[0] if turns else None

    async def conversation(self, tenant: str, turn_id: str) -> Sequence[Turn]:
        """The turns from the first one that is kept up to this one; empty when this one is not kept."""
        return (await self._chain(tenant, turn_id, MOST_TURNS))[::-1]

    async def finished(
        self, tenant: str, kind: str, *, model: str | None, after_id: str | None, ascending: bool, limit: int
    ) -> Sequence[Turn]:
        """Turns of one kind of job that have been answered, by age; `after_id` is the last one of the page before."""
        kept, job, record = TurnRow.__table__, DurableJobRow.__table__, JobRow.__table__
        age = tuple_(job.c.accepted_ms, job.c.id)
        query = select(kept.c.previous_id, kept.c.input, job).join(job, job.c.id == kept.c.id)
        query = query.join(record, record.c.id == kept.c.id).where(kept.c.tenant == tenant, record.c.kind == kind)
        query = query.where(record.c.state == JobState.FINISHED.value, job.c.result.is_not(None))
        if model is not None:
            query = query.where(record.c.model_asked == model)
        if after_id is not None:
            accepted_ms = select(job.c.accepted_ms).where(job.c.id == after_id).scalar_subquery()
            edge = tuple_(accepted_ms, literal(after_id))
            query = query.where(age > edge if ascending else age < edge)
        order = (job.c.accepted_ms, job.c.id) if ascending else (job.c.accepted_ms.desc(), job.c.id.desc())
        async with record_errors(), self._engine.connect() as connection:
            rows = (await connection.execute(query.order_by(*order).limit(limit))).all()
        return [_turn(row, job.c) for row in rows]

    async def rewrite(self, tenant: str, turn_id: str, content: bytes) -> bool:
        """Replace a turn's input; False when there is none."""
        mine = (TurnRow.id == turn_id, TurnRow.tenant == tenant)
        async with record_errors(), self._engine.begin() as connection:
            changed = await connection.execute(update(TurnRow).where(*mine).values(input=content))
        return bool(changed.rowcount)

    async def forget(self, tenant: str, turn_id: str) -> bool:
        """Drop a turn, and its answer where that is whole; False when there was none. Later turns lose their start."""
        async with record_errors(), self._engine.begin() as connection:
            gone = await connection.execute(delete(TurnRow).where(TurnRow.id == turn_id, TurnRow.tenant == tenant))
            if gone.rowcount:
                answered = (DurableJobRow.id == turn_id, DurableJobRow.ended_ms.is_not(None))
                await connection.execute(update(DurableJobRow).where(*answered).values(result=None, body=None))
        return bool(gone.rowcount)

    async def _chain(self, tenant: str, turn_id: str, most: int) -> Sequence[Turn]:
        """Turns from this one backwards."""
        first = select(TurnRow.id, TurnRow.previous_id, TurnRow.input, literal(1).label("back"))
        chain = first.where(TurnRow.id == turn_id, TurnRow.tenant == tenant).cte("chain", recursive=True)
        earlier = aliased(TurnRow)
        step = select(earlier.id, earlier.previous_id, earlier.input, chain.c.back + 1)
        step = step.where(earlier.id == chain.c.previous_id, earlier.tenant == tenant, chain.c.back < most)
        chain = chain.union_all(step)
        job = DurableJobRow.__table__
        query = select(chain, job).join(job, job.c.id == chain.c.id).order_by(chain.c.back)
        async with record_errors(), self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [_turn(row, job.c) for row in rows]


def _turn(row: Row[Any], job: Any) -> Turn:
    values = row._mapping
    job_id, body, result = values[job.id], values[job.body], values[job.result]
    durable = DurableJob(
        job_id,
        values[job.tenant],
        values[job.accepted_ms],
        values[job.ended_ms],
        JobRequest.decode(body) if body else None,
        decode_frames(job_id, result) if result else None,
    )
    return Turn(durable, values["previous_id"], values["input"])
