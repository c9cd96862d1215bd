"""Ends that clients were told: each gets into the record, also when Redis loses the job with its last second.

A client hears the end of its answer before that end is on Redis' disk. Once it is lost, nobody knows of it but the API
node that told it. That node looks for the job again when the disk must have it, and tells the record what is missing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from scheduler.forgotten import forgotten, tell_end
from scheduler.frames import End
from scheduler.jobs import ENDS, TERMINAL
from scheduler.outages import look_for_ever
from scheduler.queue import JobQueue, NewJob, submitted_facts
from scheduler.store import Store

log = structlog.get_logger()

SETTLED_S = 5.0
"""`appendfsync everysec` holds writes back for two seconds at most, and a replica that keeps up has them sooner."""

PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class _ToldEnd:
    job_id: str
    submitted: Mapping[str, Any]
    end: End
    told_s: float


class Told:
    """The ends that one API node has told lately."""

    def __init__(self, queue: JobQueue, store: Store, *, settled_s: float = SETTLED_S) -> None:
        self._queue = queue
        self._store = store
        self._settled_s = settled_s
        self._ends: deque[_ToldEnd] = deque()
        self._forgotten: list[_ToldEnd] = []

    def hear(self, job: NewJob, end: End) -> None:
        """A client is being told that a synchronous job of this node has ended."""
        self._ends.append(_ToldEnd(job.id, submitted_facts(job), end, time.monotonic()))

    async def run(self, period_s: float = PERIOD_S) -> None:
        """Look for ever; an outage only delays it."""
        await look_for_ever(self.look, period_s, "the look for told ends")

    async def look(self) -> list[str]:
        """One look at what was told long enough ago; the jobs that the queue and the record had to be told of.

        Raises QueueUnavailable, RecordUnavailable: the next look begins where this one stopped.
        """
        settled_s = time.monotonic() - self._settled_s
        due = [told for told in self._ends if told.told_s <= settled_s]
        if due:
            unknown = await forgotten(self._queue, [told.job_id for told in due])
            self._forgotten += [told for told in due if told.job_id in unknown]
        for _ in due:
            self._ends.popleft()
        jobs = []
        while self._forgotten:
            if await self._tell(self._forgotten[0]):
                jobs.append(self._forgotten[0].job_id)
            del self._forgotten[0]
        if jobs:
            log.warning("Redis has lost jobs whose ends were told, the record was told again", jobs=jobs)
        return jobs

    async def _tell(self, told: _ToldEnd) -> bool:
        """False where the record has the end, or another node was faster."""
        job = await self._store.job(told.job_id)
        if job is not None and job.state in TERMINAL:
            return False
        state = job.state if job else None
        return await tell_end(self._queue, told.job_id, state, ENDS[told.end.state], told.end.data, told.submitted)
