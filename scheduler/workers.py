"""What workers and node agents say about themselves: figures in Redis that expire, read by the API and by operators.

`{farm}:worker:<worker>` is a JSON object; `{farm}:workers` the set of names that may have one; `agent` the same.
Whoever reads gets workers' rows that all have the same keys: what one does not say, or has not said yet, is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from redis.asyncio import Redis

from scheduler.outages import redis_errors

FIGURES = (
    *("worker", "model", "engine", "engine_description", "draft_model", "blas", "host", "pid"),
    *("started_ms", "seen_ms", "stalled_s", "jobs", "tokens_per_s"),
    *("backend", "running", "waiting", "prefilling", "kv_bytes", "active_memory_bytes", "peak_memory_bytes"),
    *("prompt_tokens_total", "generated_tokens_total", "steps_total", "wasted_rows_total", "preemptions_total"),
    *("memory_bytes", "plan_ms", "forward_ms", "sample_ms", "text_ms"),
    *("plan_ms_total", "forward_ms_total", "sample_ms_total", "text_ms_total"),
    *("used_blocks", "cached_blocks", "total_blocks", "prefix_hit_tokens_total", "prefix_looked_up_tokens_total"),
    *("disk_hit_blocks_total", "disk_missed_blocks_total", "disk_bytes"),
    *("drafted_tokens_total", "right_drafts_total"),
)
"""The keys of every row: who it is, since when, what it does now, and what its engine measures."""


def worker_row(worker: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """A row with every key; None where this worker has said nothing. Newer workers may say more."""
    return {**dict.fromkeys(FIGURES), **figures, "worker": worker}


class Board:
    """Publish and list figures of one kind of process. Raises QueueUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis, kind: str) -> None:
        self._redis = redis
        self._kind = kind

    async def publish(self, name: str, figures: Mapping[str, Any], ttl_s: float) -> None:
        """Show `figures` under a name for `ttl_s`."""
        async with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._key(name), orjson.dumps({self._kind: name, **figures}), px=round(ttl_s * 1000))
            pipe.sadd(self._names, name)
            await pipe.execute()

    async def withdraw(self, name: str) -> None:
        """Remove the figures of one that has left."""
        async with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            pipe.delete(self._key(name))
            pipe.srem(self._names, name)
            await pipe.execute()

    async def list(self) -> list[dict[str, Any]]:
        """What all have published lately, by name."""
        async with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            pipe.smembers(self._names)
            names = sorted(name.decode() for name in (await pipe.execute())[0])
            if not names:
                return []
            raw = await self._redis.mget([self._key(name) for name in names])
            for name, data in zip(names, raw, strict=True):
                if data is None:
                    pipe.srem(self._names, name)
            await pipe.execute()
        return [orjson.loads(data) for data in raw if data is not None]

    @property
    def _names(self) -> str:
        return f"{{farm}}:{self._kind}s"

    def _key(self, name: str) -> str:
        return f"{{farm}}:{self._kind}:{name}"


class WorkerBoard(Board):
    """The figures of model processes."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, "worker")

    async def list(self) -> list[dict[str, Any]]:
        """The rows of all who have published lately, by name."""
        return [worker_row(figures["worker"], figures) for figures in await super().list()]
