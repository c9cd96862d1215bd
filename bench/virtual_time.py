"""The real queue scripts on a clock that the caller sets, and one worker whose rows each make a token per tick."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field

from redis.asyncio import Redis

from scheduler.events import EventType
from scheduler.frames import Chunk, FrameId
from scheduler.job_ids import new_job_id
from scheduler.jobs import Lane
from scheduler.queue import Claimed, JobQueue, NewJob
from scheduler.requests import JobRequest, Stopping
from scheduler.scripts import QueuePolicy, script_texts
from scheduler.tokens import Emission, EmitCode, TokenLog

POOL, WORKER, CLOCK = "virtual", "virtual", "{farm.0}:clock"
REAL_TIME = "local t = redis.call('TIME')\n  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)"
VIRTUAL_TIME = f"return tonumber(redis.call('GET', '{CLOCK}'))"


class VirtualQueue(JobQueue):
    """A queue of one shard whose scripts ask CLOCK for the time in ms."""

    def __init__(self, redis: Redis, policy: QueuePolicy) -> None:
        super().__init__(redis, policy=policy)
        for name, text in script_texts(policy, 1).items():
            assert REAL_TIME in text
            self._scripts[name] = redis.register_script(text.replace(REAL_TIME, VIRTUAL_TIME))


@dataclass(slots=True)
class Service:
    """One job's way: times in virtual ms, tokens of prompt and output that it has had."""

    tenant: str
    lane: Lane
    submitted_ms: int
    claimed_ms: int | None = None


@dataclass(slots=True)
class Running:
    """A claimed job and how far it is."""

    claimed: Claimed
    said: int = 0


@dataclass(slots=True)
class VirtualFarm:
    """`rows` sequences at once, one token each per tick of `tick_ms`; prompts take no time, but they count."""

    queue: VirtualQueue
    rows: int
    tick_ms: int = 50
    now_ms: int = 1_000_000_000_000
    jobs: dict[str, Service] = field(default_factory=dict)
    tokens: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    _running: list[Running] = field(default_factory=list)
    _nonces: itertools.count[int] = field(default_factory=itertools.count)

    async def submit(self, tenant: str, lane: Lane, *, prompt: int, answer: int) -> str:
        """A job arrives now."""
        await self._set_clock()
        request = JobRequest(
            kind="chat", model=POOL, prompts=(tuple(range(prompt)),), stopping=Stopping(max_tokens=answer)
        )
        job = NewJob(
            id=new_job_id(1),
            request=request,
            pool=POOL,
            tenant=tenant,
            lane=lane,
            route="",
            rule_version=0,
            model_asked=POOL,
            request_id="",
        )
        self.jobs[job.id] = Service(tenant, lane, self.now_ms)
        return await self.queue.submit(job)

    async def tick(self) -> list[str]:
        """Claim what there is room for, make a token per row, end what is done; return the ids claimed."""
        await self._set_clock()
        await self.queue.heartbeat(WORKER, [row.claimed.id for row in self._running], register=True)
        claimed: list[Claimed] = []
        if len(self._running) < self.rows:
            nonce = f"n{next(self._nonces)}"
            claimed = await self.queue.claim(
                WORKER, POOL, rows=self.rows - len(self._running), nonce=nonce, idle=not self._running
            )
        for job in claimed:
            self.jobs[job.id].claimed_ms = self.now_ms
            self._count(job.id, job.request.prompt_tokens)
            self._running.append(Running(job))
        await self._step()
        self.now_ms += self.tick_ms
        return [job.id for job in claimed]

    async def _step(self) -> None:
        emissions = []
        for row in self._running:
            row.said += 1
            self._count(row.claimed.id, 1)
            frame_id = FrameId(row.claimed.generation, row.said)
            emissions.append(Emission(row.claimed.id, row.claimed.token, frame_id, (Chunk(0, (1,), "a"),)))
        if emissions:
            assert set(await TokenLog(self.queue).emit(emissions)) == {EmitCode.OK}
        for row in [row for row in self._running if row.said >= row.claimed.request.stopping.max_tokens]:
            data = {"cached_tokens": 0, "output_tokens": row.said}
            await self.queue.finish(row.claimed.id, row.claimed.token, EventType.FINISHED, data)
            self._running.remove(row)

    def _count(self, job_id: str, tokens: int) -> None:
        """Tokens of service by tenant and second."""
        self.tokens[self.jobs[job_id].tenant, self.now_ms // 1000] += tokens

    async def _set_clock(self) -> None:
        await self.queue.redis.set(CLOCK, self.now_ms)
