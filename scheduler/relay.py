"""The relay: async jobs that SQL has accepted and the queue does not know are given to the queue (again).

Submitting is idempotent by job id, so that repeating it is harmless.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog
from redis.asyncio import Redis

from scheduler.errors import QueueFull, QueueUnavailable, RecordUnavailable, UnknownJob
from scheduler.forgotten import forgotten
from scheduler.outages import redis_errors
from scheduler.queue import JobQueue, NewJob
from scheduler.store import Store

log = structlog.get_logger()

GRACE_MS = 5_000
"""The API node that accepted a job gets this long to submit it itself."""


class Relay:
    """Moves accepted jobs from SQL to the queue."""

    def __init__(self, redis: Redis, queue: JobQueue, store: Store) -> None:
        self._redis = redis
        self._queue = queue
        self._store = store

    async def run(self, period_s: float = 5.0, sweep_every: int = 12) -> None:
        """Relay for ever; look for forgotten jobs every `sweep_every` periods, and after a restart of Redis."""
        turn, swept = 0, ""
        while True:
            try:
                await self.relay(GRACE_MS)
                server = await self._server()
                if server != swept or turn % sweep_every == 0:
                    await self.sweep()
                    swept = server
                turn += 1
            except (QueueUnavailable, QueueFull, RecordUnavailable) as error:
                log.warning("relay waits", error=str(error))
            await asyncio.sleep(period_s)

    async def _server(self) -> str:
        """Another one than before has started meanwhile, and may have lost its last second."""
        async with redis_errors():
            return str((await self._redis.info("server"))["run_id"])

    async def relay(self, older_than_ms: int) -> int:
        """Submit what was accepted before that and not relayed; return how many.

        Raises QueueFull at the end: what one tenant or model has no room for does not hold up the others.
        """
        count, full = 0, None
        for job in await self._store.unrelayed(older_than_ms):
            try:
                await self._submit(job)
            except QueueFull as error:
                full = error
                continue
            await self._store.relayed(job.id)
            count += 1
        if full is not None:
            raise full
        return count

    async def sweep(self) -> int:
        """Submit relayed, unfinished jobs that Redis does not know (it lost its memory); return how many."""
        count, last = 0, ""
        while jobs := await self._store.unfinished(last):
            last = jobs[-1].id
            unknown = await forgotten(self._queue, [job.id for job in jobs])
            for job in jobs:
                if job.id in unknown:
                    await self._submit(job)
                    count += 1
        return count

    async def _submit(self, job: NewJob) -> None:
        """Without its idempotency key: SQL has checked that one, and a job that SQL has accepted must run."""
        job = await self._store.with_images(job)
        if job.request.lacks_images:
            return  # it has ended since it was looked for
        try:
            await self._queue.submit(replace(job, idempotency_key=""))
        except UnknownJob as error:
            log.error("an accepted job belongs to a shard that this farm does not have", error=str(error))
