"""Jobs that nobody has any more: their record gets an end with a reason, instead of running for ever.

A synchronous job lives in Redis and in the API node that holds its request. When both are lost, the node and the last
second of Redis, only the record is left. A job is given up when two looks, a period apart, find it in the record alone:
an API node that still holds one gives it back within seconds.
"""

from __future__ import annotations

import structlog

from scheduler.events import EventType
from scheduler.forgotten import forgotten, tell_end
from scheduler.job_ids import shard_of
from scheduler.jobs import Job
from scheduler.outages import look_for_ever
from scheduler.queue import JobQueue
from scheduler.store import Store

log = structlog.get_logger()

PERIOD_S = 60.0
PAGE_JOBS = 500

LOST = {
    "error_code": "job_lost",
    "error": "The queue lost this job with its memory, and no API node held it any more.",
}


class Lost:
    """Looks for lost jobs. Several schedulers may: each end is told once."""

    def __init__(self, queue: JobQueue, store: Store, *, page: int = PAGE_JOBS) -> None:
        self._queue = queue
        self._store = store
        self._page = page
        self._missing: set[str] = set()

    async def run(self, period_s: float = PERIOD_S) -> None:
        """Look for ever; an outage only delays it."""
        await look_for_ever(self.look, period_s, "the look for lost jobs")

    async def look(self) -> list[str]:
        """One look; the jobs that were ended. Raises QueueUnavailable, RecordUnavailable: then it does not count."""
        missing: dict[str, Job] = {}
        last = ""
        while jobs := await self._store.alive_synchronous(last, self._page):
            last = jobs[-1].id
            missing |= {job.id: job for job in await self._unknown(jobs)}
        given_up = [job for job in missing.values() if job.id in self._missing]
        ended = [job.id for job in given_up if await tell_end(self._queue, job.id, job.state, EventType.LOST, LOST)]
        self._missing = missing.keys() - {job.id for job in given_up}
        if ended:
            log.error("jobs were lost with their API node and Redis' memory", jobs=ended)
        return ended

    async def _unknown(self, jobs: list[Job]) -> list[Job]:
        """Those of a farm's own shards that the queue does not know."""
        ours = [job for job in jobs if shard_of(job.id) < self._queue.shards]
        unknown = await forgotten(self._queue, [job.id for job in ours])
        return [job for job in ours if job.id in unknown]
