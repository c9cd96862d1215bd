"""Queries of the record: what API nodes read, and the acceptance of async jobs. The projector writes the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import msgpack
from sqlalchemy import Executable, and_, insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from scheduler.database import DatabaseClock, record_errors
from scheduler.errors import IdempotencyConflict
from scheduler.frames import End as EndFrame
from scheduler.frames import Frame, FrameId, decode_body, encode_chunks, encode_end
from scheduler.image_record import images_of, keep_images
from scheduler.jobs import TERMINAL, Job, JobState, Lane
from scheduler.queue import NewJob
from scheduler.requests import JobRequest
from scheduler.tables import DurableJobRow, JobRow, TurnRow
from scheduler.wire import known_fields

_WAITED_MS = (DatabaseClock() - DurableJobRow.accepted_ms).label("waited_ms")

JOB_COLUMNS = tuple(field.name for field in fields(Job))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs a listing wants; None means all. `since_ms` bounds the submission time from below."""

    tenant: str | None = None
    model: str | None = None
    state: JobState | None = None
    lane: Lane | None = None
    since_ms: int | None = None
    until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class KeptInput:
    """What is kept of an async job's input, to be gone on from later (scheduler/turns.py)."""

    input: bytes
    previous_id: str | None = None


@dataclass(frozen=True, slots=True)
class DurableJob:
    """An accepted async job as SQL keeps it; `frames` is its result (None until it has ended)."""

    id: str
    tenant: str
    accepted_ms: int
    ended_ms: int | None
    request: JobRequest | None
    frames: tuple[Frame, ...] | None


class Store:
    """All methods raise RecordUnavailable when the database does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    async def accept(self, job: NewJob, kept: KeptInput | None = None) -> str:
        """Commit an async job; return its id, or the first job's id for a repeated idempotency key. Idempotent by id.

        What is to be kept of its input is committed with it.

        Raises IdempotencyConflict for the same key with another body.
        """
        async with record_errors():
            try:
                async with self.engine.begin() as connection:
                    await insert_durable(connection, [job])
                    if kept is not None:
                        turn = {"previous_id": kept.previous_id, "input": kept.input}
                        await connection.execute(insert(TurnRow).values(id=job.id, tenant=job.tenant, **turn))
            except IntegrityError:
                return await self._accepted_before(job)
        return job.id

    async def relayed(self, *job_ids: str) -> None:
        """Note that the queue has these jobs."""
        async with record_errors(), self.engine.begin() as connection:
            await connection.execute(
                update(DurableJobRow).where(DurableJobRow.id.in_(job_ids)).values(relayed_ms=DatabaseClock())
            )

    async def unrelayed(self, older_than_ms: int, limit: int = 100) -> list[NewJob]:
        """Accepted jobs that the queue may not have: not relayed, and accepted before now - `older_than_ms`.

        Without their images, as all lists of jobs.
        """
        query = (
            select(DurableJobRow.submission, DurableJobRow.body, _WAITED_MS)
            .where(DurableJobRow.relayed_ms.is_(None), DurableJobRow.ended_ms.is_(None))
            .where(DurableJobRow.accepted_ms <= DatabaseClock() - older_than_ms)
            .order_by(DurableJobRow.accepted_ms)
            .limit(limit)
        )
        return [_new_job(row.submission, row.body, row.waited_ms) for row in await self._all(query)]

    async def unfinished(self, after_id: str = "", limit: int = 500) -> list[NewJob]:
        """Relayed jobs without an end, by id: what a queue that lost its memory must be given again."""
        query = (
            select(DurableJobRow.submission, DurableJobRow.body, _WAITED_MS)
            .where(DurableJobRow.relayed_ms.is_not(None), DurableJobRow.ended_ms.is_(None))
            .where(DurableJobRow.id > after_id)
            .order_by(DurableJobRow.id)
            .limit(limit)
        )
        return [_new_job(row.submission, row.body, row.waited_ms) for row in await self._all(query)]

    async def durable_job(self, job_id: str) -> DurableJob | None:
        """An accepted async job with its result, or None."""
        rows = await self._all(select(DurableJobRow.__table__).where(DurableJobRow.id == job_id))
        return durable_job_of_row(rows[0]) if rows else None

    async def with_images(self, job: NewJob) -> NewJob:
        """An accepted job with the images that it shows: all of them, unless it has ended meanwhile."""
        if not job.request.lacks_images:
            return job
        async with record_errors(), self.engine.connect() as connection:
            return replace(job, request=replace(job.request, images=await images_of(connection, job.id)))

    async def job(self, job_id: str) -> Job | None:
        """The record of one job, or None."""
        rows = await self._all(select(JobRow.__table__).where(JobRow.id == job_id))
        return job_of_row(rows[0]._mapping) if rows else None

    async def jobs(self, wanted: JobFilter, *, after: tuple[int, str] | None = None, limit: int = 50) -> list[Job]:
        """Jobs, newest first; `after` is (submitted_ms, id) of the last one of the page before (keyset)."""
        table = JobRow.__table__
        query = select(table).order_by(table.c.submitted_ms.desc(), table.c.id.desc()).limit(limit)
        for column, value in (("tenant", wanted.tenant), ("model", wanted.model), ("state", wanted.state)):
            if value is not None:
                query = query.where(table.c[column] == str(value))
        if wanted.lane is not None:
            query = query.where(table.c.lane == wanted.lane.value)
        if wanted.since_ms is not None:
            query = query.where(table.c.submitted_ms >= wanted.since_ms)
        if wanted.until_ms is not None:
            query = query.where(table.c.submitted_ms < wanted.until_ms)
        if after is not None:
            query = query.where(tuple_(table.c.submitted_ms, table.c.id) < after)
        return [job_of_row(row._mapping) for row in await self._all(query)]

    async def alive_synchronous(self, after_id: str = "", limit: int = 500) -> list[Job]:
        """Jobs without an end that no `durable_jobs` row holds, by id."""
        table = JobRow.__table__
        alive = [state.value for state in JobState if state not in TERMINAL]
        query = (
            select(table)
            .where(table.c.state.in_(alive), table.c.durable.is_(False), table.c.id > after_id)
            .order_by(table.c.id)
            .limit(limit)
        )
        return [job_of_row(row._mapping) for row in await self._all(query)]

    async def _accepted_before(self, job: NewJob) -> str:
        same_key = and_(DurableJobRow.tenant == job.tenant, DurableJobRow.idempotency_key == job.idempotency_key)
        query = select(DurableJobRow.id, DurableJobRow.body_hash).where(or_(DurableJobRow.id == job.id, same_key))
        rows = await self._all(query)
        if any(row.id == job.id for row in rows):
            return job.id
        if not rows or rows[0].body_hash != job.body_hash:
            raise IdempotencyConflict(job.idempotency_key)
        return str(rows[0].id)

    async def _all(self, query: Executable) -> Sequence[Any]:
        async with record_errors(), self.engine.connect() as connection:
            rows: Sequence[Any] = (await connection.execute(query)).all()
            return rows


async def insert_durable(connection: AsyncConnection, jobs: Sequence[NewJob]) -> None:
    """Accept jobs in a transaction of the caller's; its commit is the promise. Raises IntegrityError for known ones.

    Images are apart from the bodies, which many look at.
    """
    rows = [
        {
            "id": job.id,
            "tenant": job.tenant,
            "idempotency_key": job.idempotency_key or None,
            "body_hash": job.body_hash,
            "submission": _submission(job),
            "body": job.request.without_images().encode(),
        }
        for job in jobs
    ]
    if rows:
        await connection.execute(insert(DurableJobRow).values(accepted_ms=DatabaseClock()), rows)
    await keep_images(connection, ((job.id, job.tenant, job.request.images) for job in jobs))


def durable_job_of_row(row: Any) -> DurableJob:
    """A row (with these columns among others) as a job."""
    return DurableJob(
        row.id,
        row.tenant,
        row.accepted_ms,
        row.ended_ms,
        JobRequest.decode(row.body) if row.body else None,
        decode_frames(row.id, row.result) if row.result else None,
    )


def job_of_row(row: Mapping[str, Any]) -> Job:
    """A `jobs` row as the dataclass that `replay` makes."""
    values = {name: row[name] for name in JOB_COLUMNS}
    return Job(**values | {"state": JobState(values["state"]), "lane": Lane(values["lane"])})


def row_of_job(job: Job) -> dict[str, Any]:
    """Inverse of `job_of_row`."""
    values = {name: getattr(job, name) for name in JOB_COLUMNS}
    return values | {"state": job.state.value, "lane": job.lane.value}


def encode_frames(frames: Sequence[Frame]) -> bytes:
    """A finished token log as one value: msgpack of [generation, sequence, body]."""
    return bytes(
        msgpack.packb(
            [
                (
                    frame.id.generation,
                    frame.id.sequence,
                    encode_end(frame.body) if isinstance(frame.body, EndFrame) else encode_chunks(frame.body),
                )
                for frame in frames
            ]
        )
    )


def decode_frames(job_id: str, data: bytes) -> tuple[Frame, ...]:
    """Inverse of `encode_frames`."""
    entries = msgpack.unpackb(data, use_list=False)
    return tuple(Frame(job_id, FrameId(gen, seq), decode_body(body)) for gen, seq, body in entries)


_SUBMITTED = tuple(field.name for field in fields(NewJob) if field.name != "request")


def _submission(job: NewJob) -> dict[str, Any]:
    """Everything of a NewJob but its body, as JSON; `_new_job` puts them together again."""
    return {name: getattr(job, name) for name in _SUBMITTED} | {"lane": job.lane.value, "node": ""}


def _new_job(submission: Mapping[str, Any], body: bytes, waited_ms: int) -> NewJob:
    """The job as it is to be submitted now: its times began when it was accepted."""
    known = known_fields(NewJob, submission) | {"lane": Lane(submission["lane"])}
    job = NewJob(**known, request=JobRequest.decode(body))
    waited_ms = max(0, waited_ms)
    deadline_ms = max(1, job.deadline_ms - waited_ms) if job.deadline_ms else 0
    return replace(job, delay_ms=max(0, job.delay_ms - waited_ms), deadline_ms=deadline_ms)
