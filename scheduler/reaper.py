"""The reaper: jobs of dead workers go back to the front, jobs past their deadline end. Two reapers do no harm."""

from __future__ import annotations

import math
import time

import structlog

from scheduler.availability import Availability
from scheduler.errors import QueueUnavailable
from scheduler.outages import look_for_ever, redis_errors
from scheduler.queue import JobQueue

log = structlog.get_logger()

BATCH_JOBS = 64


class Reaper:
    """Looks at every shard once a period."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._availability = Availability()

    async def run(self, period_s: float = 0.5) -> None:
        """Reap for ever; a Redis outage only delays it."""
        await look_for_ever(self.round, period_s, "the reaper")

    async def round(self) -> int:
        """One look at every shard; return how many jobs were touched. Raises QueueUnavailable.

        Leases run while Redis answers: a worker that could not renew its lease during an outage is not dead, and
        renews it now. A process that has just started counts from the start of Redis.
        """
        try:
            return await self._look()
        except QueueUnavailable:
            self._availability.failed()
            raise

    async def _look(self) -> int:
        async with redis_errors():
            info = await self._queue.redis.info("server")
        self._availability.answered(str(info["run_id"]), int(info["uptime_in_seconds"]), time.monotonic())
        overdue_s = self._availability.overdue_s(self._queue.policy.lease_ms / 1000)
        touched = 0
        for shard in range(self._queue.shards):
            more = BATCH_JOBS
            while more == BATCH_JOBS:
                more = await self._queue.expire(shard, BATCH_JOBS)
                touched += more
            if overdue_s is not None:
                ended_ms = math.ceil(overdue_s * 1000)
                requeued = await self._queue.reap(shard, ended_ms=ended_ms, limit=BATCH_JOBS)
                touched += len(requeued)
                if requeued:
                    log.warning("jobs of lost workers put back", shard=shard, jobs=requeued)
        return touched
