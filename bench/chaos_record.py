"""What is left of a farm's work once all is quiet: read from Redis and SQL for bench/history.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from redis.asyncio import Redis
from sqlalchemy import func, select

from bench.history import Expected, Held, History, Story
from scheduler.connections import command_client
from scheduler.database import open_database
from scheduler.errors import QueueUnavailable, RecordUnavailable
from scheduler.events import Event, EventType
from scheduler.frames import START, Frame
from scheduler.jobs import TERMINAL, Job
from scheduler.projector import Projector
from scheduler.queue import JobQueue, shard_key
from scheduler.retention import Retention
from scheduler.store import job_of_row
from scheduler.tables import EventRow, JobRow, ProjectionErrorRow, UsageRow
from scheduler.tokens import TokenLog

LASTING = {"ev", "cnt", "vt", "fence", "wl"}
LASTING_BEGINNINGS = ("act:", "idle:", "rate:")
"""Keys of a shard that belong to no job: counters, tenants of a lane, workers with room, what drains."""


class Record:
    """Reads one farm's Redis and SQL (shard 0)."""

    def __init__(self, redis_url: str, database_url: str) -> None:
        self._redis = command_client(redis_url)
        self._engine = open_database(database_url)
        self._queue = JobQueue(self._redis)
        self._tokens = TokenLog(self._queue)

    async def close(self) -> None:
        """Close the clients."""
        await self._redis.aclose()
        await self._engine.dispose()

    async def settled(self, timeout_s: float) -> bool:
        """Wait until every job has ended and SQL knows; False when that takes too long."""
        deadline_s = time.monotonic() + timeout_s
        settled = await self._is_settled()
        while not settled and time.monotonic() < deadline_s:
            await asyncio.sleep(0.2)
            settled = await self._is_settled()
        return settled

    async def history(
        self, stories: Sequence[Story], expected: Mapping[str, Expected], held: Sequence[Held] = ()
    ) -> History:
        """Everything that the checker looks at, after the chore that looks after what a killed projector left."""
        await self._chore()
        jobs = await self.jobs()
        logs = {job_id: await self.log(job_id) for job_id in jobs}
        return History(
            stories=stories,
            expected=expected,
            jobs=jobs,
            events=await self._events(),
            set_aside=await self._set_aside(),
            logs={job_id: log for job_id, log in logs.items() if log},
            billed=await self._billed(),
            eternal_keys=await self._eternal_keys(jobs),
            counters=await self._counters(),
            held=held,
        )

    async def jobs(self) -> dict[str, Job]:
        """The rows of `jobs`."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(JobRow.__table__))
            return {row.id: job_of_row(dict(row._mapping)) for row in rows}

    async def log(self, job_id: str) -> list[Frame]:
        """A whole token log."""
        frames: list[Frame] = []
        while more := await self._tokens.read(job_id, frames[-1].id if frames else START):
            frames += more
        return frames

    async def _is_settled(self) -> bool:
        try:
            lag_ms = await Projector(self._redis, self._engine, self._queue, 0).lag_ms()
            alive = [job for job in (await self.jobs()).values() if job.state not in TERMINAL]
        except (QueueUnavailable, RecordUnavailable):
            return False
        return lag_ms == 0 and not alive

    async def _chore(self) -> None:
        """What the scheduler does every quarter of an hour, but nothing is old enough to be forgotten."""
        retention = Retention(self._redis, self._engine, self._queue, [])
        now_ms = time.time_ns() // 1_000_000
        await retention.run(now_ms=now_ms, result_ttl_ms=now_ms, record_ttl_ms=now_ms, trim_margin_ms=now_ms)

    async def _events(self) -> list[Event]:
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(EventRow.__table__).order_by(EventRow.ms, EventRow.seq))
            return [Event(f"{r.ms}-{r.seq}", EventType(r.type), r.job_id, r.at_ms, r.data) for r in rows]

    async def _set_aside(self) -> list[Event]:
        """Events behind a job's recorded end: the queue had lost that end and ran the job again."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(ProjectionErrorRow.event_id, ProjectionErrorRow.raw))
            told = [(row.event_id, orjson.loads(row.raw)) for row in rows]
        return [Event(event_id, EventType(raw["t"]), raw["j"], raw["at"], raw["d"]) for event_id, raw in told]

    async def _billed(self) -> dict[str, int]:
        query = select(func.sum(UsageRow.jobs), func.sum(UsageRow.output_tokens))
        async with self._engine.connect() as connection:
            jobs, tokens = (await connection.execute(query)).one()
        return {"jobs": int(jobs or 0), "output_tokens": int(tokens or 0)}

    async def _eternal_keys(self, jobs: Mapping[str, Job]) -> list[str]:
        """Keys of shard 0 without a time to live, but for those that no job owns or that are kept on purpose."""
        prefix = shard_key(0, "").encode()
        names = [key async for key in self._redis.scan_iter(match=prefix + b"*", count=1000)]
        lives = [await self._redis.pttl(name) for name in names]
        eternal = [name.removeprefix(prefix).decode() for name, ms in zip(names, lives, strict=True) if ms == -1]
        return [name for name in eternal if name not in LASTING and not name.startswith(LASTING_BEGINNINGS)]

    async def _counters(self) -> dict[str, int]:
        raw: Mapping[bytes, bytes] = await _hash(self._redis, shard_key(0, "cnt"))
        return {name.decode(): int(value) for name, value in raw.items()}


async def _hash(redis: Redis, key: str) -> Any:
    return await redis.hgetall(key)  # type: ignore[misc]
