"""A job's move from a model that has failed to the one that takes over: one script, with its event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from scheduler.jobs import FAILOVER
from scheduler.outages import redis_errors
from scheduler.queue import JobQueue
from scheduler.requests import JobRequest


async def reroute(
    queue: JobQueue, job_id: str, token: str, request: JobRequest, why: Mapping[str, Any], *, before: str = ""
) -> str:
    """Give up on a job that has said nothing: the model of `request` has it next, at the front of its queue.

    The job is held with `token`, or (without one) waits for the model `before`. `why` has `error_code` and `error`.
    Returns ok, fenced, or ended (as it had been asked to). Raises QueueUnavailable.
    """
    facts = {"why": FAILOVER, "model": request.model, "crashes": 0, **why}
    args = (token, request.model, request.without_images().encode(), request.prompt_tokens, orjson.dumps(facts), before)
    async with redis_errors():
        answer = await queue.run("reroute", queue.shard_of(job_id), job_id, *args)
    return str(answer.decode())
