"""Dead letters: jobs that workers died on, or that failed, too often. They are kept until an operator decides."""

from __future__ import annotations

from scheduler.outages import redis_errors
from scheduler.queue import JobQueue, shard_key


class DeadLetters:
    """List and discard, over all shards. Methods raise QueueUnavailable when Redis does not answer."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    async def ids(self, tenant: str, limit: int) -> list[str]:
        """A tenant's dead jobs, at most `limit`, the longest dead first."""
        dead: list[tuple[float, str]] = []
        async with redis_errors():
            for shard in range(self._queue.shards):
                entries = await self._queue.redis.zrange(shard_key(shard, "dlq"), 0, -1, withscores=True)
                names = [job_id.decode() for job_id, _ in entries]
                async with self._queue.redis.pipeline(transaction=False) as pipe:
                    for name in names:
                        pipe.hget(shard_key(shard, f"j:{name}"), "tenant")
                    tenants = await pipe.execute()
                dead += [
                    (at_ms, name)
                    for (_, at_ms), name, owner in zip(entries, names, tenants, strict=True)
                    if owner is not None and owner.decode() == tenant
                ]
        return [name for _, name in sorted(dead)[:limit]]

    async def discard(self, job_id: str) -> bool:
        """Keep a dead job no longer than any ended one; False where it is not dead (any more)."""
        async with redis_errors():
            return bool(await self._queue.run("discard", self._queue.shard_of(job_id), job_id) == b"ok")
