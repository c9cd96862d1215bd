"""What waits for models that may have no worker: asked by node agents, which load models by demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.outages import redis_errors
from scheduler.queue import JobQueue

MODEL_FAILED = "model_failed"
"""The error code of jobs whose model cannot be loaded."""

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
