"""Tenants as the queue knows them: what each has there, and its weight, which may be changed while the farm runs.

A changed weight lies in Redis, beside the queue it rules, and goes before the settings' until it is taken back.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.outages import redis_errors
from scheduler.queue import JobQueue, shard_key

DEFAULT_WEIGHT = 1.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """`jobs` and `tokens` are those that have not ended. `set_by`: live, settings, or default (nobody)."""

    name: str
    weight: float
    set_by: str
    jobs: int
    tokens: int


class Tenants:
    """Raises QueueUnavailable when Redis does not answer."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    async def list(self) -> list[Tenant]:
        """All that have a weight of their own or jobs that have not ended, by name."""
        live, counts = await self._read()
        busy = {key.removeprefix("t:") for key in counts if key.startswith("t:")}
        names = sorted({*live, *busy, *dict(self._queue.policy.tenant_weights)})
        return [self._tenant(name, live, counts) for name in names]

    async def set_weight(self, name: str, weight: float | None) -> Tenant:
        """Change a tenant's part from now on, for jobs that wait too; None: as the settings say."""
        async with redis_errors(), self._queue.redis.pipeline(transaction=False) as pipe:
            for shard in range(self._queue.shards):
                key = shard_key(shard, "weights")
                if weight is None:
                    pipe.hdel(key, name)
                else:
                    pipe.hset(key, name, repr(float(weight)))
            await pipe.execute()
        return self._tenant(name, *await self._read())

    async def _read(self) -> tuple[dict[str, float], dict[str, int]]:
        """Weights that were set live, and the counters of all shards together."""
        live: dict[str, float] = {}
        counts: dict[str, int] = {}
        async with redis_errors(), self._queue.redis.pipeline(transaction=False) as pipe:
            for shard in range(self._queue.shards):
                pipe.hgetall(shard_key(shard, "weights"))
                pipe.hgetall(shard_key(shard, "cnt"))
            answers: list[dict[bytes, bytes]] = await pipe.execute()
        for weights, counters in zip(answers[::2], answers[1::2], strict=True):
            live |= {name.decode(): float(weight) for name, weight in weights.items()}
            for key, count in counters.items():
                counts[key.decode()] = counts.get(key.decode(), 0) + int(count)
        return live, counts

    def _tenant(self, name: str, live: dict[str, float], counts: dict[str, int]) -> Tenant:
        configured = dict(self._queue.policy.tenant_weights)
        weight = live.get(name, configured.get(name, DEFAULT_WEIGHT))
        set_by = "live" if name in live else "settings" if name in configured else "default"
        return Tenant(name, weight, set_by, counts.get(f"t:{name}", 0), counts.get(f"T:{name}", 0))
