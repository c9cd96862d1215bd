"""What Redis has lost with its memory: which jobs, and how the end of one gets into the event log all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from scheduler.events import EventType
from scheduler.job_ids import shard_of
from scheduler.jobs import JobState
from scheduler.outages import redis_errors
from scheduler.queue import JobQueue, shard_key


async def forgotten(queue: JobQueue, job_ids: Sequence[str]) -> set[str]:
    """Those of the jobs that the queue does not know. Raises QueueUnavailable."""
    async with redis_errors(), queue.redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.exists(shard_key(shard_of(job_id), f"j:{job_id}"))
        known = await pipe.execute()
    return {job_id for job_id, is_known in zip(job_ids, known, strict=True) if not is_known}


async def tell_end(
    queue: JobQueue,
    job_id: str,
    recorded: JobState | None,
    event: EventType,
    facts: Mapping[str, Any],
    submitted: Mapping[str, Any] | None = None,
) -> bool:
    """End a forgotten job in the event log; False when the queue has it after all, or its end was told.

    The record has it in a state, or not at all: then `submitted` is told first. Raises QueueUnavailable.
    """
    args = [recorded.value if recorded else "", orjson.dumps(submitted or {}), event.value, orjson.dumps(facts)]
    async with redis_errors():
        return bool(await queue.run("lose", queue.shard_of(job_id), job_id, *args))
