"""The projector: event log → SQL, with the checkpoint moved in the same transaction, so that each event counts once.

Any number may run: the checkpoint is compared and swapped, so only one of them commits a given range. The `jobs` rows
are computed by `scheduler.jobs.apply` (and, after Redis has lost moves, `apply_after_loss`) and by nothing else.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import structlog
from redis.asyncio import Redis
from sqlalchemy import Insert, bindparam, delete, insert, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from scheduler.checkpoints import Checkpoint, project_for_ever
from scheduler.database import insert_into, record_errors
from scheduler.events import Event, EventType, decode_event, stream_position
from scheduler.frames import START, Frame
from scheduler.image_record import drop_images
from scheduler.jobs import TERMINAL, IllegalMove, Job, JobState, apply, apply_after_loss
from scheduler.outages import redis_errors
from scheduler.queue import JobQueue, event_key
from scheduler.store import encode_frames, job_of_row, row_of_job
from scheduler.tables import CheckpointRow, DurableJobRow, EventRow, JobRow, ProjectionErrorRow, UsageRow
from scheduler.tokens import TokenLog

log = structlog.get_logger()

BATCH_EVENTS = 500

GATHER_S = 0.05
"""How long events are gathered before they are written."""

HOUR_MS = 3_600_000
RETENTION = "retention"


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry that cannot be applied: kept raw beside the log, never in the way of the others."""

    event_id: str
    raw: str
    error: str


@dataclass(frozen=True, slots=True)
class Result:
    """What SQL keeps of an ended async job: its request without prompts, and its whole token log."""

    job: Job
    body: bytes | None
    frames: bytes


@dataclass(frozen=True, slots=True)
class Projection:
    """What one batch of events changes; `changed` in order of first appearance."""

    changed: dict[str, Job]
    ended: tuple[Job, ...]
    rejected: tuple[Rejected, ...]
    events: tuple[Event, ...]


def project(events: Iterable[Event], known: Mapping[str, Job]) -> Projection:
    """Apply events to the jobs known before; pure. What comes after a job's end is rejected: the first end is final."""
    changed: dict[str, Job] = {}
    ended: list[Job] = []
    rejected: list[Rejected] = []
    applied: list[Event] = []
    for event in events:
        try:
            before = changed.get(event.job_id, known.get(event.job_id))
            job = apply(None, event) if before is None else apply_after_loss(before, event)
        except (IllegalMove, KeyError, ValueError, TypeError) as error:
            rejected.append(Rejected(event.id, _raw(event), f"{type(error).__name__}: {error}"))
            continue
        changed[event.job_id] = job
        applied.append(event)
        if job.state in TERMINAL:
            ended.append(job)
    return Projection(changed, tuple(ended), tuple(rejected), tuple(applied))


class Projector:
    """Projects one shard's event log."""

    def __init__(self, redis: Redis, engine: AsyncEngine, queue: JobQueue, shard: int) -> None:
        self._redis = redis
        self._engine = engine
        self._queue = queue
        self._tokens = TokenLog(queue)
        self._shard = shard
        self._checkpoint = Checkpoint(engine, f"events:{shard}")

    async def run(self) -> None:
        """Project for ever; a Redis or SQL outage only delays it."""
        await project_for_ever(partial(self.step, block_ms=1000), shard=self._shard)

    async def step(self, block_ms: int | None = None) -> int:
        """Project the next batch; return how many entries were read (0: the log is at its end).

        Raises CheckpointMoved, QueueUnavailable, RecordUnavailable; nothing is half done then.
        """
        position = await self.checkpoint()
        if block_ms is not None:
            await self._gather(position, block_ms)
        async with redis_errors():
            answer = await self._redis.xread({event_key(self._shard): position}, count=BATCH_EVENTS)
        if not answer:
            return 0
        entries = answer[0][1]
        events, malformed = _decode(entries)
        async with record_errors(), self._engine.connect() as connection:
            known = await _known_jobs(connection, {event.job_id for event in events})
        projection = project(events, known)
        results = await self._results(projection.ended)
        async with record_errors(), self._engine.begin() as connection:
            await self._checkpoint.move(connection, position, entries[-1][0].decode())
            await write_projection(connection, self._shard, projection, malformed)
            await _write_results(connection, results)
        await self._let_expire(results)
        return len(entries)

    async def _gather(self, position: str, block_ms: int) -> None:
        """Wait for an event, then a moment for those that come with it: one transaction, and not while they arrive."""
        async with redis_errors():
            if await self._redis.xread({event_key(self._shard): position}, count=1, block=block_ms):
                await asyncio.sleep(GATHER_S)

    async def checkpoint(self) -> str:
        """The id of the last projected event ('0-0' before the first). Raises RecordUnavailable."""
        return await self._checkpoint.position()

    async def lag_ms(self) -> int:
        """How much older the last projected event is than the newest one in the log; 0 when nothing is missing."""
        position = stream_position(await self.checkpoint())
        async with redis_errors():
            newest = await self._redis.xrevrange(event_key(self._shard), count=1)
        if not newest or stream_position(newest[0][0].decode()) <= position:
            return 0
        return max(1, stream_position(newest[0][0].decode())[0] - position[0]) if position[0] else 1

    async def trim(self, margin_ms: int) -> int:
        """Drop projected events older than `margin_ms` before the checkpoint from Redis; return how many."""
        ms, _, sequence = (await self.checkpoint()).partition("-")
        async with redis_errors():
            minimum = f"{max(0, int(ms) - margin_ms)}-{sequence}"
            return int(await self._redis.xtrim(event_key(self._shard), minid=minimum, approximate=False))

    async def _results(self, ended: Sequence[Job]) -> list[Result]:
        return [await self._result(job) for job in ended if job.durable]

    async def _result(self, job: Job) -> Result:
        """The finished log of an async job, and its request without the prompts: a body is kept until the end only."""
        request = await self._queue.body(job.id)
        stripped = request.without_input() if request else None
        return Result(job, stripped.encode() if stripped else None, encode_frames(await self._whole_log(job.id)))

    async def _whole_log(self, job_id: str) -> list[Frame]:
        frames: list[Frame] = []
        while more := await self._tokens.read(job_id, frames[-1].id if frames else START):
            frames += more
        return frames

    async def _let_expire(self, results: Sequence[Result]) -> None:
        """The results are in SQL now: Redis may forget the jobs after the usual time."""
        await self._queue.let_expire([result.job.id for result in results if result.job.state is not JobState.DEAD])


async def rebuild(engine: AsyncEngine) -> int:
    """Compute `jobs` and `usage_hourly` again from `job_events`, in one transaction; return the number of events.

    Usage of hours before the retention's cutoff stays: its events are gone.
    """
    known: dict[str, Job] = {}
    count = 0
    last = (-1, -1, -1)
    async with record_errors(), engine.begin() as connection:
        await _keep_projectors_out(connection)
        cutoff_ms = int(await retention_cutoff(connection))
        await connection.execute(delete(JobRow))
        await connection.execute(delete(UsageRow).where(UsageRow.hour_ms >= cutoff_ms))
        while rows := await _events_after(connection, last):
            last = (rows[-1].shard, rows[-1].ms, rows[-1].seq)
            projection = project([_event_of_row(row) for row in rows], known)
            known |= projection.changed
            for job in projection.ended:
                del known[job.id]
            count += len(rows)
            await _write_jobs(connection, projection)
    return count


async def _keep_projectors_out(connection: AsyncConnection) -> None:
    """Every writer of these tables moves a checkpoint first; SQLite has one writer at a time anyway."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("LOCK TABLE checkpoints IN EXCLUSIVE MODE"))
    else:
        await connection.execute(update(CheckpointRow).where(CheckpointRow.name == "").values(position=""))


async def retention_cutoff(connection: AsyncConnection) -> str:
    """Jobs that ended before this hour (ms since 1970) have no events any more; '0' when nothing was dropped yet."""
    query = select(CheckpointRow.position).where(CheckpointRow.name == RETENTION)
    return (await connection.execute(query)).scalar_one_or_none() or "0"


async def _events_after(connection: AsyncConnection, last: tuple[int, int, int]) -> Sequence[Any]:
    key = (EventRow.shard, EventRow.ms, EventRow.seq)
    query = select(EventRow.__table__).where(tuple_(*key) > last).order_by(*key).limit(BATCH_EVENTS)
    return (await connection.execute(query)).all()


async def write_projection(
    connection: AsyncConnection, shard: int, projection: Projection, malformed: Sequence[Rejected]
) -> None:
    """Write a batch: the events themselves, the rejected ones, and what they change."""
    if projection.events:
        await connection.execute(insert(EventRow), [_row_of_event(shard, event) for event in projection.events])
    rejected = [*malformed, *projection.rejected]
    if rejected:
        log.error("events could not be projected", shard=shard, events=[entry.event_id for entry in rejected])
        await connection.execute(
            insert(ProjectionErrorRow),
            [{"shard": shard, "event_id": r.event_id, "raw": r.raw, "error": r.error} for r in rejected],
        )
    await _write_jobs(connection, projection)


async def _write_jobs(connection: AsyncConnection, projection: Projection) -> None:
    if projection.changed:
        statement = _upsert(connection, JobRow, ["id"], keep=("id",))
        await connection.execute(statement, [row_of_job(job) for job in projection.changed.values()])
    usage = _usage(projection.ended)
    if usage:
        await connection.execute(_add_usage(connection), usage)


def _usage(ended: Iterable[Job]) -> list[dict[str, Any]]:
    totals: dict[tuple[int, str, str], Counter[str]] = {}
    for job in ended:
        key = ((job.ended_ms or 0) // HOUR_MS * HOUR_MS, job.tenant, job.model)
        totals.setdefault(key, Counter()).update(
            jobs=1,
            prompt_tokens=job.prompt_tokens,
            cached_tokens=job.cached_tokens,
            output_tokens=job.output_tokens,
        )
    return [
        {"hour_ms": hour, "tenant": tenant, "model": model, **sums} for (hour, tenant, model), sums in totals.items()
    ]


def _upsert(connection: AsyncConnection, table: type[Any], key: list[str], keep: tuple[str, ...]) -> Insert:
    statement = insert_into(connection, table)
    columns = [column.name for column in table.__table__.columns if column.name not in keep]
    changed: Insert = statement.on_conflict_do_update(
        index_elements=key, set_={name: statement.excluded[name] for name in columns}
    )
    return changed


def _add_usage(connection: AsyncConnection) -> Insert:
    statement = insert_into(connection, UsageRow)
    sums = ("jobs", "prompt_tokens", "cached_tokens", "output_tokens")
    added: Insert = statement.on_conflict_do_update(
        index_elements=["hour_ms", "tenant", "model"],
        set_={name: UsageRow.__table__.c[name] + statement.excluded[name] for name in sums},
    )
    return added


async def _known_jobs(connection: AsyncConnection, job_ids: set[str]) -> dict[str, Job]:
    rows = await connection.execute(select(JobRow.__table__).where(JobRow.id.in_(sorted(job_ids))))
    return {row.id: job_of_row(dict(row._mapping)) for row in rows}


async def _write_results(connection: AsyncConnection, results: Sequence[Result]) -> None:
    if not results:
        return
    statement = (
        update(DurableJobRow)
        .where(DurableJobRow.id == bindparam("job_id"))
        .values(result=bindparam("frames"), body=bindparam("stripped"), ended_ms=bindparam("at_ms"))
    )
    values = [
        {"job_id": result.job.id, "frames": result.frames, "stripped": result.body, "at_ms": result.job.ended_ms}
        for result in results
    ]
    await connection.execute(statement, values, execution_options={"synchronize_session": None})
    await drop_images(connection, [result.job.id for result in results if result.job.params.get("images")])


def _decode(entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> tuple[list[Event], list[Rejected]]:
    events: list[Event] = []
    malformed: list[Rejected] = []
    for entry_id, fields in entries:
        try:
            events.append(decode_event(entry_id, fields))
        except (KeyError, ValueError) as error:
            malformed.append(Rejected(entry_id.decode(), repr(dict(fields)), f"{type(error).__name__}: {error}"))
    return events, malformed


def _raw(event: Event) -> str:
    return orjson.dumps({"t": event.type, "j": event.job_id, "at": event.at_ms, "d": dict(event.data)}).decode()


def _row_of_event(shard: int, event: Event) -> dict[str, Any]:
    ms, seq = event.position
    return {
        "shard": shard,
        "ms": ms,
        "seq": seq,
        "type": event.type.value,
        "job_id": event.job_id,
        "at_ms": event.at_ms,
        "data": dict(event.data),
    }


def _event_of_row(row: Any) -> Event:
    return Event(f"{row.ms}-{row.seq}", EventType(row.type), row.job_id, row.at_ms, row.data)
