"""Limits of keys, in one round trip: per minute, per day, and jobs at once; settled by what jobs really used.

A job is charged at the door for its prompt and for the answer it asks for. The script that ends it notes what it used
in its shard (`{shard}used`); whoever comes first, the API node that answers or the scheduler, settles the difference.
Key schema: scripts/limits.lua.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from scheduler.backpressure import LONGEST_S, SHORTEST_S, SPREAD, Level, Limits, Standing
from scheduler.errors import OverLimit, RateLimited
from scheduler.outages import look_for_ever, redis_errors
from scheduler.queue import JobQueue, shard_key
from scheduler.scripts import limit_texts

KINDS: Mapping[str, tuple[str, str]] = {
    "requests": ("requests_per_minute", "requests per minute"),
    "input": ("input_tokens_per_minute", "input tokens per minute"),
    "output": ("output_tokens_per_minute", "output tokens per minute"),
    "day": ("tokens_per_day", "tokens per day"),
    "concurrent": ("concurrent_jobs", "jobs at once"),
}
"""The scripts' names of limits: the field of `Limits`, and how to say it."""

BATCH = 100
DAY_S = 86400.0


class Limiter:
    """Charges and settles. Methods raise QueueUnavailable when Redis does not answer; both moves are idempotent."""

    def __init__(self, redis: Redis, queue: JobQueue) -> None:
        self._redis = redis
        self._queue = queue
        self._scripts: dict[str, AsyncScript] = {
            name: redis.register_script(text) for name, text in limit_texts().items()
        }

    async def admit(
        self, budget: str, limits: Limits, job_id: str, *, input_tokens: int, output_tokens: int, keep_s: float
    ) -> Standing:
        """Charge a job to a budget (the key's id); its place is free again after `keep_s`, come what may.

        More output than a minute's (or a day's) worth is charged as that much: it is an estimate.
        Raises RateLimited, OverLimit; nothing was charged then.
        """
        if limits.output_tokens_per_minute:
            output_tokens = min(output_tokens, limits.output_tokens_per_minute)
        if limits.tokens_per_day:
            output_tokens = min(output_tokens, max(0, limits.tokens_per_day - input_tokens))
        tokens = input_tokens + output_tokens
        amounts = {"requests": 1, "input": input_tokens, "output": output_tokens, "day": tokens}
        args: list[str | int] = [job_id, round(keep_s * 1000), limits.concurrent_jobs]
        for kind, amount in amounts.items():
            args += [getattr(limits, KINDS[kind][0]), amount]
        async with redis_errors():
            kind, wait_ms, *used, _ = await self._scripts["admit"](keys=_keys(budget), args=args)
        standing = _standing(limits, used)
        if kind:
            raise _refusal(limits, kind.decode(), amounts, standing, wait_ms / 1000)
        return standing

    async def forget(self, budget: str, job_id: str) -> None:
        """The job was not accepted: as if nobody had asked."""
        await self._settle(budget, job_id, 0, 0, 0)

    async def settle(self, shard: int) -> int:
        """Settle what has ended in a shard; return how many jobs. Two at once do no harm."""
        async with redis_errors():
            entries = await self._redis.zrange(shard_key(shard, "used"), 0, BATCH - 1)
            for entry in entries:
                job_id, input_tokens, output_tokens, budget = entry.decode().split(" ", 3)
                await self._settle(budget, job_id, 1, int(input_tokens), int(output_tokens))
            if entries:
                await self._redis.zrem(shard_key(shard, "used"), *entries)
        return len(entries)

    async def run(self, period_s: float = 0.5) -> None:
        """Settle for ever what no API node has settled (async jobs, clients that left); an outage only delays it."""
        await look_for_ever(self._settle_all, period_s, "settling what keys have used")

    async def _settle_all(self) -> None:
        for shard in range(self._queue.shards):
            while await self.settle(shard) == BATCH:
                continue

    async def _settle(self, budget: str, job_id: str, requests: int, input_tokens: int, output_tokens: int) -> None:
        async with redis_errors():
            await self._scripts["settle"](keys=_keys(budget), args=[job_id, requests, input_tokens, output_tokens])


def _keys(budget: str) -> list[str]:
    return [f"{{limit.{budget}}}:level", f"{{limit.{budget}}}:jobs"]


def _standing(limits: Limits, used: list[int]) -> Standing:
    bounds = (limits.requests_per_minute, limits.input_tokens_per_minute, limits.output_tokens_per_minute)
    levels = (Level(bound, amount) if bound else None for bound, amount in zip(bounds, used, strict=True))
    requests, input_tokens, output_tokens = levels
    return Standing(requests=requests, input_tokens=input_tokens, output_tokens=output_tokens)


def _refusal(
    limits: Limits, kind: str, amounts: Mapping[str, int], standing: Standing, wait_s: float
) -> RateLimited | OverLimit:
    field, words = KINDS[kind]
    limit: int = getattr(limits, field)
    if amounts.get(kind, 0) > limit:
        return OverLimit(limit, words, amounts[kind], standing)
    longest_s = DAY_S if kind == "day" else LONGEST_S
    wait_s = min(max(wait_s, SHORTEST_S), longest_s) * (1 + SPREAD * random.random())
    return RateLimited(limit, words, standing, wait_s)
