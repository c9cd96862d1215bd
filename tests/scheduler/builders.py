"""What the tests of the scheduler build with: jobs with defaults, and a farm whose workers do what the test says."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from redis.asyncio import Redis

from scheduler.events import Event, EventType, decode_event
from scheduler.frames import Chunk, FrameId
from scheduler.job_ids import new_job_id
from scheduler.jobs import JobState, Lane
from scheduler.models import ModelCard
from scheduler.queue import Claimed, JobQueue, NewJob, event_key, shard_key
from scheduler.requests import JobRequest, Stopping
from scheduler.scripts import QueuePolicy
from scheduler.tokens import Emission, EmitCode, TokenLog

POOL = "demo"
PATIENT_LEASE_MS = 600_000
"""No stall of the machine ends it."""

ENDED: dict[str, Any] = {
    "output_tokens": 2,
    "cached_tokens": 1,
    "ttft_ms": 1.5,
    "prefill_ms": 2.25,
    "decode_ms": 3.0,
    "finish_reason": "stop",
}


def make_request(prompt_tokens: int = 3, max_tokens: int = 7, n: int = 1, **parts: Any) -> JobRequest:
    """A request whose cost is `prompt_tokens` + `max_tokens` * `n`."""
    defaults: dict[str, Any] = {"kind": "chat", "model": POOL, "prompts": (tuple(range(prompt_tokens)),)}
    return JobRequest(**defaults | parts, n=n, stopping=Stopping(max_tokens=max_tokens))


def make_job(shards: int = 1, **parts: Any) -> NewJob:
    """A NewJob; arguments that a NewJob does not have go to its request."""
    own = {field.name for field in fields(NewJob)}
    defaults: dict[str, Any] = {
        "id": new_job_id(shards),
        "pool": POOL,
        "tenant": "default",
        "lane": Lane.NORMAL,
        "route": "",
        "rule_version": 0,
        "model_asked": POOL,
        "request_id": "req-1",
    }
    job = {key: value for key, value in parts.items() if key in own}
    request = {key: value for key, value in parts.items() if key not in own}
    return NewJob(**{"request": make_request(**request), **defaults, **job})


def make_card(**parts: Any) -> ModelCard:
    """A model card with the least in it."""
    defaults: dict[str, Any] = {
        "name": POOL,
        "created_s": 1,
        "context_tokens": 100,
        "vocab_tokens": 300,
        "tokenizer_sha256": "abc",
        "chat_template": None,
        "bos_token": None,
        "eos_token": "<e>",
        "eos_token_ids": (1,),
        "think_start": None,
        "think_end": None,
        "has_tool_calling": False,
        "tool_call_start": None,
        "tool_call_end": None,
        "engine": "none",
        "parameters": 1,
        "weight_bytes": 4,
    }
    return ModelCard(**defaults | parts)


class Farm:
    """A queue, and workers that do only what they are told. A lease ends only where the test's policy says when."""

    def __init__(self, redis: Redis, policy: QueuePolicy | None = None, shards: int = 1) -> None:
        self.redis = redis
        policy = policy or QueuePolicy()
        if policy.lease_ms == QueuePolicy().lease_ms:
            policy = replace(policy, lease_ms=PATIENT_LEASE_MS)
        self.queue = JobQueue(redis, shards=shards, policy=policy)
        self.log = TokenLog(self.queue)
        self._nonces = itertools.count()

    async def submit(self, **parts: Any) -> str:
        """Submit a job made from `parts`; its id."""
        return await self.queue.submit(make_job(**parts))

    async def worker(self, name: str = "w1") -> str:
        """Register a worker."""
        assert (await self.queue.heartbeat(name, [], register=True)).alive
        return name

    async def claim(
        self, worker: str = "w1", rows: int = 1, *, idle: bool = True, nonce: str = "", reserved: int = 0
    ) -> list[Claimed]:
        """Claim; every call has a nonce of its own unless it is given."""
        await self.worker(worker)
        nonce = nonce or f"n{next(self._nonces)}"
        return await self.queue.claim(worker, POOL, rows=rows, nonce=nonce, idle=idle, reserved=reserved)

    async def start(self, worker: str = "w1", **parts: Any) -> Claimed:
        """Submit a job and let a worker claim it (nothing else may be waiting)."""
        job_id = await self.submit(**parts)
        (claimed,) = await self.claim(worker)
        assert claimed.id == job_id
        return claimed

    async def say(self, held: Claimed, sequence: int, text: str = "a", token: str | None = None) -> EmitCode:
        """Emit one chunk of one token."""
        chunk = Chunk(0, (sequence,), text)
        frame_id = FrameId(held.generation, sequence)
        emission = Emission(held.id, held.token if token is None else token, frame_id, (chunk,))
        (code,) = await self.log.emit([emission])
        return code

    async def finish(self, held: Claimed, event: EventType = EventType.FINISHED, **data: Any) -> bool:
        """End a held job."""
        return await self.queue.finish(held.id, held.token, event, ENDED | data)

    async def crash(self, worker: str = "w1") -> list[str]:
        """The worker's process is dead, and its supervisor says so."""
        return await self.queue.reap(0, worker=worker)

    async def events(self, job_id: str | None = None) -> list[Event]:
        """The event log of shard 0, or one job's part of it."""
        events = [decode_event(*entry) for entry in await self.redis.xrange(event_key(0))]
        return [event for event in events if job_id in (None, event.job_id)]

    async def told(self, job_id: str) -> list[str]:
        """The types of a job's events."""
        return [event.type.value for event in await self.events(job_id)]

    async def state(self, job_id: str) -> JobState | None:
        """The state in the job's hash."""
        snapshot = await self.queue.snapshot(job_id)
        return JobState(snapshot["state"]) if snapshot else None

    async def counts(self) -> Mapping[str, int]:
        """The shard's counters, without those that are 0."""
        raw = await self.redis.hgetall(shard_key(0, "cnt"))  # type: ignore[misc]
        return {key.decode(): int(value) for key, value in raw.items() if int(value)}

    async def keys(self, pattern: str = "*") -> list[str]:
        """Keys of shard 0 without their prefix."""
        prefix = shard_key(0, "")
        return sorted(key.decode().removeprefix(prefix) for key in await self.redis.keys(f"{prefix}{pattern}"))

    async def eternal_keys(self, job_id: str) -> list[str]:
        """Keys of a job that have no time to live, and backlogs."""
        names = [name for name in await self.keys(f"*:{job_id}") if await self.redis.ttl(shard_key(0, name)) == -1]
        return names + await self.keys("q:*")
