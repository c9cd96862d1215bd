"""The images of a job in Redis, apart from its body: they are large, and go when no job needs them any more."""

from __future__ import annotations

from dataclasses import replace

from scheduler.outages import redis_errors
from scheduler.queue import JobQueue, shard_key
from scheduler.requests import JobRequest


async def with_images(queue: JobQueue, job_id: str, request: JobRequest) -> JobRequest:
    """The request with its images, if it needs them and Redis has all of them. Raises QueueUnavailable."""
    if not request.lacks_images:
        return request
    shard = queue.shard_of(job_id)
    async with redis_errors(), queue.redis.pipeline(transaction=False) as pipe:
        pipe.get(shard_key(shard, f"i:{job_id}"))
        pipe.hget(shard_key(shard, f"j:{job_id}"), "tenant")
        shown, tenant = await pipe.execute()
        digests = shown.decode().split() if shown and tenant else []
        for digest in dict.fromkeys(digests):
            pipe.get(shard_key(shard, f"img:{tenant.decode()}:{digest}"))
        images = dict(zip(dict.fromkeys(digests), await pipe.execute(), strict=True))
    if None in images.values():
        return request
    return replace(request, images=tuple(images[digest] for digest in digests))
