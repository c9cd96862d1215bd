"""The reaper: jobs of dead workers go back to the front, jobs past their deadline end. Two reapers do no harm."""

from __future__ import annotations

import asyncio
import math
import time

import structlog

from scheduler.errors import QueueUnavailable
from scheduler.outages import redis_errors
from scheduler.queue import JobQueue

log = structlog.get_logger()

BATCH_JOBS = 64


class Reaper:
    """Looks at every shard once a period."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._server = ""
        self._since_s = -math.inf

    async def run(self, period_s: float = 0.5) -> None:
        """Reap for ever; a Redis outage only delays it."""
        while True:
            try:
                await self.round()
            except QueueUnavailable as error:
                log.warning("reaper waits", error=str(error))
                self._since_s = time.monotonic()
            await asyncio.sleep(period_s)

    async def round(self) -> int:
        """One look at every shard; return how many jobs were touched.

        Leases are left alone for one lease time after Redis has started, did not answer, or is another server than
        before: a worker that could not renew its lease during the outage is not dead, and renews it now.
        """
        touched = 0
        reap = await self._settled_ms() > self._queue.policy.lease_ms
        for shard in range(self._queue.shards):
            more = BATCH_JOBS
            while more == BATCH_JOBS:
                more = await self._queue.expire(shard, BATCH_JOBS)
                touched += more
            if reap:
                requeued = await self._queue.reap(shard, limit=BATCH_JOBS)
                touched += len(requeued)
                if requeued:
                    log.warning("jobs of lost workers put back", shard=shard, jobs=requeued)
        return touched

    async def _settled_ms(self) -> float:
        """For how long this server has been here, as far as this process knows."""
        async with redis_errors():
            info = await self._queue.redis.info("server")
        if self._server not in ("", info["run_id"]):
            self._since_s = time.monotonic()
        self._server = str(info["run_id"])
        return min(int(info["uptime_in_seconds"]), time.monotonic() - self._since_s) * 1000
