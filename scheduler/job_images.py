"""The images of a job apart from its body: they are large, and go when the job is finished."""

from __future__ import annotations

from dataclasses import replace

from scheduler.outages import redis_errors
from scheduler.queue import JobQueue, shard_key
from scheduler.requests import JobRequest, decode_images


async def with_images(queue: JobQueue, job_id: str, request: JobRequest) -> JobRequest:
    """The request with the images that Redis keeps of it, if it needs them. Raises QueueUnavailable."""
    if not request.lacks_images:
        return request
    async with redis_errors():
        data = await queue.redis.get(shard_key(queue.shard_of(job_id), f"i:{job_id}"))
    return replace(request, images=decode_images(data or b""))
