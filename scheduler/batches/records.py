"""Batches in SQL. A worker's move is one transaction that first takes the batch's version: of two, one is void."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Executable, Row, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from ulid import ULID

from scheduler.batches.states import ACTIVE, CANCELLABLE, ENDED, BatchState, Counts, Outcome
from scheduler.database import record_errors
from scheduler.errors import BatchMoved, UnknownBatch
from scheduler.files import StoredFile, add_file, is_id
from scheduler.image_record import drop_images
from scheduler.jobs import JobState
from scheduler.outbox import Webhook, add_webhook
from scheduler.queue import NewJob
from scheduler.store import DurableJob, durable_job_of_row, insert_durable
from scheduler.tables import BatchLineRow, BatchRow, DurableJobRow, FileRow, JobRow

_COUNTS = ("total", "succeeded", "errored", "canceled", "expired")
_STAMPS = {
    BatchState.IN_PROGRESS: "in_progress_ms",
    BatchState.FINALIZING: "finalizing_ms",
    BatchState.CANCELLING: "cancelling_ms",
    **dict.fromkeys(ENDED, "ended_ms"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch; `options` are its protocol's own (metadata, webhook, …), `next_offset` counts bytes of its input.

    `models`: the names that were served when it was validated. `errors`: why it failed.
    """

    id: str
    tenant: str
    protocol: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_ms: int
    expires_ms: int
    state: BatchState = BatchState.VALIDATING
    version: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    next_offset: int = 0
    models: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, Any] = field(default_factory=dict)
    in_progress_ms: int | None = None
    finalizing_ms: int | None = None
    cancelling_ms: int | None = None
    ended_ms: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was taken: a job (`job_id`), or an outcome with its line of a result file."""

    number: int
    custom_id: str
    job_id: str | None = None
    outcome: Outcome | None = None
    result: bytes | None = None


@dataclass(frozen=True, slots=True)
class EndedLine:
    """A line whose job has ended, with what the record keeps of it."""

    number: int
    custom_id: str
    job: DurableJob
    state: JobState
    error_code: str | None
    error: str | None


class Batches:
    """All methods raise RecordUnavailable when the database does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(self, batch: Batch, file: StoredFile | None = None) -> None:
        """Commit a new batch, with the file that was made for it."""
        async with record_errors(), self._engine.begin() as connection:
            if file is not None:
                await add_file(connection, file)
            await connection.execute(insert(BatchRow).values(_values(batch)))

    async def get(self, tenant: str, protocol: str, batch_id: str) -> Batch:
        """A tenant's batch. Raises UnknownBatch."""
        if not is_id(batch_id):
            raise UnknownBatch(batch_id)
        query = select(BatchRow.__table__).where(
            BatchRow.id == batch_id, BatchRow.tenant == tenant, BatchRow.protocol == protocol
        )
        for row in await self._all(query):
            return _batch(row)
        raise UnknownBatch(batch_id)

    async def page(
        self, tenant: str, protocol: str, *, limit: int, after: str | None = None, before: str | None = None
    ) -> list[Batch]:
        """Newest first, behind `after`; or those just before `before`, oldest first."""
        table = BatchRow.__table__
        query = select(table).where(table.c.tenant == tenant, table.c.protocol == protocol).limit(limit)
        if after is not None:
            query = query.where(table.c.id < after)
        if before is not None:
            query = query.where(table.c.id > before)
        query = query.order_by(table.c.id if before is not None else table.c.id.desc())
        return [_batch(row) for row in await self._all(query)]

    async def cancel(self, batch: Batch) -> Batch:
        """Ask for the end; return the batch as it is then. A batch that cannot be cancelled stays as it is."""
        async with record_errors(), self._engine.begin() as connection:
            await connection.execute(
                update(BatchRow)
                .where(BatchRow.id == batch.id, BatchRow.state.in_([state.value for state in CANCELLABLE]))
                .values(state=BatchState.CANCELLING.value, cancelling_ms=_now_ms(), version=BatchRow.version + 1)
            )
        return await self.get(batch.tenant, batch.protocol, batch.id)

    async def delete(self, batch: Batch) -> None:
        """Forget an ended batch."""
        async with record_errors(), self._engine.begin() as connection:
            await connection.execute(delete(BatchRow).where(BatchRow.id == batch.id))

    async def ended_before(self, ended_ms: int, limit: int = 500) -> list[Batch]:
        """Batches of all tenants that ended before a time, the oldest first."""
        states = [state.value for state in ENDED]
        query = select(BatchRow.__table__).where(BatchRow.state.in_(states), BatchRow.ended_ms < ended_ms)
        return [_batch(row) for row in await self._all(query.order_by(BatchRow.id).limit(limit))]

    async def active(self) -> list[Batch]:
        """All that have not ended, the oldest first."""
        states = [state.value for state in ACTIVE]
        query = select(BatchRow.__table__).where(BatchRow.state.in_(states)).order_by(BatchRow.id)
        return [_batch(row) for row in await self._all(query)]

    async def reader_of(self, file_id: str) -> str | None:
        """A batch that has not ended and reads this file."""
        states = [state.value for state in ACTIVE]
        query = select(BatchRow.id).where(BatchRow.input_file_id == file_id, BatchRow.state.in_(states)).limit(1)
        rows = await self._all(query)
        return str(rows[0].id) if rows else None

    async def open_lines(self, batch_id: str) -> list[Line]:
        """Lines without an outcome, in order."""
        query = _lines(batch_id).where(BatchLineRow.outcome.is_(None))
        return [_line(row) for row in await self._all(query)]

    async def ended_lines(self, batch_id: str, limit: int) -> list[EndedLine]:
        """Lines without an outcome whose job has ended and been recorded."""
        query = (
            select(BatchLineRow.line, BatchLineRow.custom_id, DurableJobRow.__table__)
            .add_columns(JobRow.state, JobRow.error_code, JobRow.error)
            .join(DurableJobRow, DurableJobRow.id == BatchLineRow.job_id)
            .join(JobRow, JobRow.id == BatchLineRow.job_id)
            .where(BatchLineRow.batch_id == batch_id, BatchLineRow.outcome.is_(None))
            .where(DurableJobRow.ended_ms.is_not(None))
            .order_by(BatchLineRow.line)
            .limit(limit)
        )
        return [
            EndedLine(row.line, row.custom_id, durable_job_of_row(row), JobState(row.state), row.error_code, row.error)
            for row in await self._all(query)
        ]

    async def results(self, batch_id: str, after: int, limit: int) -> list[Line]:
        """Lines with their results, in order."""
        query = _lines(batch_id).where(BatchLineRow.line > after).limit(limit)
        return [_line(row) for row in await self._all(query)]

    async def move(self, batch: Batch, state: BatchState, **changes: Any) -> Batch:
        """To another state. Raises BatchMoved."""
        async with record_errors(), self._engine.begin() as connection:
            return await _move(connection, batch, state, **changes)

    async def take(self, batch: Batch, lines: Sequence[Line], jobs: Sequence[NewJob], next_offset: int) -> Batch:
        """Lines have become jobs, which are accepted with them, or outcomes. Raises BatchMoved."""
        counts = _counted(replace(batch.counts, taken=batch.counts.taken + len(lines)), lines)
        async with record_errors(), self._engine.begin() as connection:
            moved = await _move(connection, batch, counts=counts, next_offset=next_offset)
            await connection.execute(insert(BatchLineRow), [_line_values(batch.id, line) for line in lines])
            await insert_durable(connection, jobs)
        return moved

    async def settle(self, batch: Batch, lines: Sequence[Line], usage: dict[str, Any]) -> Batch:
        """Lines have their outcomes. Raises BatchMoved.

        Their jobs' results are kept here from now on; a job that has not ended is nobody's, no relay brings it back.
        """
        async with record_errors(), self._engine.begin() as connection:
            moved = await _move(connection, batch, counts=_counted(batch.counts, lines), usage=usage)
            await connection.execute(
                update(BatchLineRow)
                .where(BatchLineRow.batch_id == batch.id, BatchLineRow.line == bindparam("number"))
                .values(outcome=bindparam("ended_as"), result=bindparam("content")),
                [{"number": line.number, "ended_as": line.outcome, "content": line.result} for line in lines],
                execution_options={"synchronize_session": None},
            )
            ids = [line.job_id for line in lines if line.job_id is not None]
            await connection.execute(
                update(DurableJobRow)
                .where(DurableJobRow.id.in_(ids))
                .values(result=None, body=None, ended_ms=func.coalesce(DurableJobRow.ended_ms, _now_ms()))
            )
            await drop_images(connection, ids)
        return moved

    async def end(
        self, batch: Batch, state: BatchState, files: Iterable[StoredFile], news: Webhook | None, **changes: Any
    ) -> Batch:
        """The last move: the result files are there, the lines go, who wants to know will hear. Raises BatchMoved."""
        async with record_errors(), self._engine.begin() as connection:
            moved = await _move(connection, batch, state, **changes)
            for file in files:
                await add_file(connection, file)
            await connection.execute(delete(BatchLineRow).where(BatchLineRow.batch_id == batch.id))
            if news is not None:
                await add_webhook(connection, news)
        return moved

    async def has_file(self, file_id: str) -> bool:
        """Is a result file still kept?"""
        return bool(await self._all(select(FileRow.id).where(FileRow.id == file_id)))

    async def _all(self, query: Executable) -> Sequence[Any]:
        async with record_errors(), self._engine.connect() as connection:
            rows: Sequence[Any] = (await connection.execute(query)).all()
            return rows


async def _move(connection: AsyncConnection, batch: Batch, state: BatchState | None = None, **changes: Any) -> Batch:
    """Take the batch's next version with these changes, in a transaction of the caller's. Raises BatchMoved."""
    if state is not None:
        changes |= {"state": state, _STAMPS[state]: _now_ms()}
    moved = replace(batch, version=batch.version + 1, **changes)
    done = await connection.execute(
        update(BatchRow).where(BatchRow.id == batch.id, BatchRow.version == batch.version).values(_values(moved))
    )
    if done.rowcount != 1:
        raise BatchMoved(batch.id)
    return moved


def new_batch_id(prefix: str) -> str:
    """Sortable by time, 80 random bits."""
    return f"{prefix}_{ULID()}"


def _counted(counts: Counts, lines: Sequence[Line]) -> Counts:
    for line in lines:
        counts = counts if line.outcome is None else counts.plus(line.outcome)
    return counts


def _values(batch: Batch) -> dict[str, Any]:
    values = {name: getattr(batch, name) for name in Batch.__slots__ if name != "counts"}
    values |= {name: getattr(batch.counts, name) for name in _COUNTS}
    return values | {"state": batch.state.value, "next_line": batch.counts.taken}


def _batch(row: Row[Any]) -> Batch:
    values = dict(row._mapping)
    counts = Counts(**{name: values.pop(name) for name in _COUNTS}, taken=values.pop("next_line"))
    return Batch(**values | {"state": BatchState(row.state), "counts": counts})


def _lines(batch_id: str) -> Any:
    return select(BatchLineRow.__table__).where(BatchLineRow.batch_id == batch_id).order_by(BatchLineRow.line)


def _line(row: Row[Any]) -> Line:
    return Line(row.line, row.custom_id, row.job_id, Outcome(row.outcome) if row.outcome else None, row.result)


def _line_values(batch_id: str, line: Line) -> dict[str, Any]:
    return {
        "batch_id": batch_id,
        "line": line.number,
        "custom_id": line.custom_id,
        "job_id": line.job_id,
        "outcome": line.outcome,
        "result": line.result,
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
