"""What workers say about themselves: figures in Redis, each with a time to live, read by the API and by operators.

`{farm}:worker:<worker>` is a JSON object; `{farm}:workers` the set of names that may have one. Whoever reads gets rows
that all have the same keys: what a worker does not say, or has not said yet, is None.
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
    *("plan_ms", "forward_ms", "sample_ms", "text_ms"),
    *("plan_ms_total", "forward_ms_total", "sample_ms_total", "text_ms_total"),
    *("used_blocks", "cached_blocks", "total_blocks", "prefix_hit_tokens_total", "prefix_looked_up_tokens_total"),
    *("disk_hit_blocks_total", "disk_missed_blocks_total", "disk_bytes"),
    *("drafted_tokens_total", "right_drafts_total"),
)
"""The keys of every row: who it is, since when, what it does now, and what its engine measures."""


def worker_row(worker: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """A row with every key; None where this worker has said nothing. Newer workers may say more."""
    return {**dict.fromkeys(FIGURES), **figures, "worker": worker}


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
        """The rows of all who have published lately, by name."""
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
        return [worker_row(name, orjson.loads(data)) for name, data in zip(names, raw, strict=True) if data is not None]
