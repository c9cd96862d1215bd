"""What waits for models that may have no worker: asked by node agents, which load models by demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from scheduler.failover import reroute
from scheduler.jobs import Lane
from scheduler.outages import redis_errors
from scheduler.queue import JobQueue, shard_key

MODEL_FAILED = "model_failed"
"""The error code of jobs whose model cannot be loaded."""

WAITING_LANES = (*("resume", "solo"), *(lane.value for lane in Lane))

AT_ONCE = 64
"""Jobs ended in one call: a script must not hold up the others."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Jobs that wait for one model, and for how long the oldest of them has been in the queue (None: no job)."""

    jobs: int = 0
    oldest_s: float | None = None


class Demand:
    """Methods raise QueueUnavailable when Redis does not answer."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    async def of(self, models: Sequence[str]) -> dict[str, Waiting]:
        """What waits for each of the models, over all shards; delayed jobs that are due are queued first."""
        found = dict.fromkeys(models, Waiting())
        async with redis_errors():
            for shard in range(self._queue.shards):
                answers = await self._queue.run("demand", shard, *models)
                for model, (jobs, oldest_ms) in zip(models, answers, strict=True):
                    found[model] = _joined(found[model], int(jobs), int(oldest_ms))
        return found

    async def hand_over(self, model: str, reason: str) -> int:
        """Give jobs that wait for a model which nobody will serve to the models that take over; how many.

        Those that have said something already, and those that nobody takes over, stay.
        """
        why = {"error_code": MODEL_FAILED, "error": reason}
        moved = 0
        for job_id in await self._oldest(model):
            body = await self._queue.body(job_id)
            request = body.next_request() if body is not None else None
            if request is not None:
                moved += await reroute(self._queue, job_id, "", request, why, before=model) == "ok"
        return moved

    async def _oldest(self, model: str) -> list[str]:
        """What `turn_away` would end next, at least."""
        found: list[str] = []
        async with redis_errors(), self._queue.redis.pipeline(transaction=False) as pipe:
            for shard, lane in product(range(self._queue.shards), WAITING_LANES):
                pipe.zrange(shard_key(shard, f"wait:{model}:{lane}"), 0, AT_ONCE - 1)
            for ids in await pipe.execute():
                found += [job_id.decode() for job_id in ids]
        return found

    async def turn_away(self, model: str, reason: str) -> int:
        """End some of the jobs that wait for a model which nobody will serve; how many (again while it is not 0)."""
        ended = 0
        async with redis_errors():
            for shard in range(self._queue.shards):
                ended += int(await self._queue.run("turn_away", shard, model, AT_ONCE, MODEL_FAILED, reason))
        return ended


def _joined(known: Waiting, jobs: int, oldest_ms: int) -> Waiting:
    if oldest_ms < 0:
        return known
    return Waiting(known.jobs + jobs, max(known.oldest_s or 0.0, oldest_ms / 1000))
