"""What workers say about themselves: figures in Redis, each with a time to live, read by the API and by operators.

`{farm}:worker:<worker>` is a JSON object; `{farm}:workers` the set of names that may have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from redis.asyncio import Redis

from scheduler.outages import redis_errors


class WorkerBoard:
    """Publish and list worker figures. Raises QueueUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def publish(self, worker: str, figures: Mapping[str, Any], ttl_s: float) -> None:
        """Show `figures` under the worker's name for `ttl_s`."""
        async with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            pipe.set(f"{{farm}}:worker:{worker}", orjson.dumps({"worker": worker, **figures}), px=round(ttl_s * 1000))
            pipe.sadd("{farm}:workers", worker)
            await pipe.execute()

    async def withdraw(self, worker: str) -> None:
        """Remove a worker's figures: it has left."""
        async with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            pipe.delete(f"{{farm}}:worker:{worker}")
            pipe.srem("{farm}:workers", worker)
            await pipe.execute()

    async def list(self) -> list[dict[str, Any]]:
        """All current figures, by name."""
        async with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            pipe.smembers("{farm}:workers")
            names = sorted(name.decode() for name in (await pipe.execute())[0])
            if not names:
                return []
            raw = await self._redis.mget([f"{{farm}}:worker:{name}" for name in names])
            for name, data in zip(names, raw, strict=True):
                if data is None:
                    pipe.srem("{farm}:workers", name)
            await pipe.execute()
        return [orjson.loads(data) for data in raw if data is not None]
