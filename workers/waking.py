"""Hearing that a job waits: the queue names one worker that has room, by the part of its name that stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError

from scheduler.queue import JobQueue, shard_key

PAUSE_S = 0.5
"""Before it listens again where the connection was lost; claims go on without it."""


async def wake_by(redis: Redis, queue: JobQueue, base: str, wake: Callable[[], None]) -> None:
    """Call `wake` at every wake-up of this worker, for ever; `redis` is a connection that may block."""
    channels = [shard_key(shard, f"wake:{base}") for shard in range(queue.shards)]
    while True:
        with suppress(RedisError, OSError):
            async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                await pubsub.subscribe(*channels)
                async for _ in pubsub.listen():
                    wake()
        await asyncio.sleep(PAUSE_S)
