"""What the farm forgets, and when: results, records with their events, projected events and token logs in Redis.

A job's row and its events go together, by whole hours, so that a rebuild gives the same tables before and after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.database import record_errors
from scheduler.job_ids import shard_of
from scheduler.jobs import JobState
from scheduler.model_record import ModelRecord
from scheduler.outages import redis_errors
from scheduler.projector import HOUR_MS, RETENTION, Projector, retention_cutoff
from scheduler.queue import JobQueue, shard_key
from scheduler.tables import CheckpointRow, DurableJobRow, EventRow, JobRow, TurnRow


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What one run removed (rows, and entries of the event log in Redis)."""

    results: int
    jobs: int
    events: int
    log_entries: int
    token_logs: int
    model_events: int = 0


class Retention:
    """Removes what is past its time. Safe to repeat and to run twice at once."""

    def __init__(self, redis: Redis, engine: AsyncEngine, queue: JobQueue, projectors: list[Projector]) -> None:
        self._redis = redis
        self._model_record = ModelRecord(redis, engine)
        self._engine = engine
        self._queue = queue
        self._projectors = projectors

    async def run(self, *, now_ms: int, result_ttl_ms: int, record_ttl_ms: int, trim_margin_ms: int) -> Forgotten:
        """Forget everything that is too old at `now_ms`. Raises QueueUnavailable, RecordUnavailable."""
        token_logs = await self._token_logs()
        results = await self._results(now_ms - result_ttl_ms)
        jobs, events = await self._records((now_ms - record_ttl_ms) // HOUR_MS * HOUR_MS)
        entries = sum([await projector.trim(trim_margin_ms) for projector in self._projectors])
        model_events = await self._model_record.forget(now_ms - record_ttl_ms)
        return Forgotten(results, jobs, events, entries, token_logs, model_events)

    async def _results(self, before_ms: int) -> int:
        """Answers, and the inputs that were kept with them."""
        old = DurableJobRow.ended_ms < before_ms
        async with record_errors(), self._engine.begin() as connection:
            await connection.execute(delete(TurnRow).where(TurnRow.id.in_(select(DurableJobRow.id).where(old))))
            gone = await connection.execute(delete(DurableJobRow).where(old))
        return gone.rowcount

    async def _records(self, before_ms: int) -> tuple[int, int]:
        old = select(JobRow.id).where(JobRow.ended_ms < before_ms)
        async with record_errors(), self._engine.begin() as connection:
            if before_ms <= int(await retention_cutoff(connection)):
                return 0, 0
            moved = await connection.execute(  # first, as every writer of these tables does
                update(CheckpointRow).where(CheckpointRow.name == RETENTION).values(position=str(before_ms))
            )
            if moved.rowcount == 0:
                await connection.execute(insert(CheckpointRow).values(name=RETENTION, position=str(before_ms)))
            events = await connection.execute(delete(EventRow).where(EventRow.job_id.in_(old)))
            jobs = await connection.execute(delete(JobRow).where(JobRow.ended_ms < before_ms))
        return jobs.rowcount, events.rowcount

    async def _token_logs(self) -> int:
        """Give ended async jobs in Redis their time to live where the projector was stopped before it could."""
        query = select(DurableJobRow.id).where(DurableJobRow.ended_ms.is_not(None))
        async with record_errors(), self._engine.connect() as connection:
            ids = (await connection.execute(query)).scalars().all()
        kept = [job_id for part in batched(ids, 500) for job_id in await self._without_ttl(part)]
        for part in batched(kept, 500):
            await self._queue.let_expire(part)
        return len(kept)

    async def _without_ttl(self, job_ids: Sequence[str]) -> list[str]:
        """Those that Redis would keep for ever, but for the dead ones, which wait for an operator."""
        async with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                key = shard_key(shard_of(job_id), f"j:{job_id}")
                pipe.ttl(key)
                pipe.hget(key, "state")
            answers = await pipe.execute()
        facts = zip(job_ids, answers[::2], answers[1::2], strict=True)
        return [job_id for job_id, ttl, state in facts if ttl == -1 and state != JobState.DEAD.value.encode()]


def batched(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Slices of at most `size` (itertools has it from Python 3.12 on)."""
    return (items[start : start + size] for start in range(0, len(items), size))
