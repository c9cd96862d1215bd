"""Random calls of all scripts, and what must be true after each run, however they were mixed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from scheduler.connections import command_client
from scheduler.errors import NoLease
from scheduler.events import EventType
from scheduler.jobs import TERMINAL, JobState, Lane, replay
from scheduler.queue import Claimed, shard_key
from scheduler.scripts import QueuePolicy
from tests.conftest import RedisServer
from tests.scheduler.builders import POOL, Farm

WORKERS = ("w1", "w2", "w3")
MOVES = (
    "submit",
    "claim",
    "claim",
    "say",
    "say",
    "end",
    "release",
    "delay",
    "cancel",
    "expire",
    "crash",
    "beat",
    "due",
)
ENDS = (EventType.FINISHED, EventType.FAILED, EventType.CANCELLED, EventType.EXPIRED)


class Chaos:
    """A farm and everything anybody ever held: old tokens are used again on purpose."""

    def __init__(self, redis: Redis) -> None:
        self.farm = Farm(redis, QueuePolicy(disowned_grace_ms=-1, age_ms=50, max_tenant_jobs=10_000))
        self.ids: list[str] = []
        self.held: list[Claimed] = []

    async def play(self, moves: list[tuple[str, int]]) -> None:
        for move, number in moves:
            await self.step(move, random.Random(number))

    async def step(self, move: str, dice: random.Random) -> None:
        worker = dice.choice(WORKERS)
        if move == "submit" or not self.ids:
            await self.submit(dice)
        elif move == "claim":
            with suppress(NoLease):  # another caller's crash came first
                self.held += await self.farm.claim(worker, dice.randint(1, 4), idle=dice.random() < 0.5)
        elif move in ("cancel", "expire", "due"):
            await self.interfere(move, dice.choice(self.ids))
        elif move == "crash":
            await self.farm.crash(worker)
        elif move == "beat":
            await self.farm.worker(worker)
            await self.farm.queue.heartbeat(worker, dice.sample(self.ids, len(self.ids) // 2))
        elif self.held:
            await self.work(move, dice.choice(self.held), dice)

    async def submit(self, dice: random.Random) -> None:
        job_id = await self.farm.submit(
            lane=dice.choice(list(Lane)),
            tenant=dice.choice("abc"),
            n=dice.randint(1, 3),
            durable=dice.random() < 0.3,
            deadline_ms=dice.choice([0, 600_000]),
            idempotency_key=dice.choice(["", str(dice.randint(0, 5))]),
        )
        if job_id not in self.ids:
            self.ids.append(job_id)

    async def interfere(self, move: str, job_id: str) -> None:
        if move == "cancel":
            await self.farm.queue.cancel(job_id, "chaos")
        elif move == "expire":
            await self.farm.redis.zadd(shard_key(0, "ddl"), {job_id: 1}, xx=True)
            await self.farm.queue.expire(0)
        else:
            await self.farm.redis.zadd(shard_key(0, "due"), {job_id: 1}, xx=True)

    async def work(self, move: str, held: Claimed, dice: random.Random) -> None:
        if move == "say":
            said = len(await self.farm.log.read(held.id))
            await self.farm.say(held, max(1, said + dice.choice([-1, 1, 1, 1, 2])))
        elif move == "end":
            await self.farm.finish(held, dice.choice(ENDS))
        else:
            await self.farm.queue.release(held.id, held.token, "chaos", 600_000 if move == "delay" else 0)


async def check(chaos: Chaos) -> None:
    """Everything that must hold at any time."""
    farm = chaos.farm
    jobs = replay(await farm.events())
    assert set(jobs) == set(chaos.ids)
    waiting: Counter[str] = Counter()
    running: dict[str, set[str]] = {worker: set() for worker in WORKERS}
    for job in jobs.values():
        snapshot = await farm.queue.snapshot(job.id)
        assert snapshot is not None
        assert (snapshot["state"], int(snapshot["attempt"])) == (job.state, job.attempts)
        frames = await farm.log.read(job.id)
        assert [frame.id.sequence for frame in frames] == list(range(1, len(frames) + 1))
        if job.state is JobState.QUEUED:
            cost = int(snapshot["cost"])
            waiting.update({"jobs": 1, "tokens": cost, f"p:{POOL}": 1, f"P:{POOL}": cost})
        if job.state not in TERMINAL:
            waiting.update({f"t:{job.tenant}": 1, f"T:{job.tenant}": int(snapshot["cost"])})
        elif not job.durable and job.state is not JobState.DEAD:
            assert [name for name in await farm.eternal_keys(job.id) if job.id in name] == []
        if job.state is JobState.RUNNING:
            running[snapshot["wid"]].add(job.id)
    assert await farm.counts() == dict(waiting)
    for worker, ids in running.items():
        members = await farm.redis.smembers(shard_key(0, f"wj:{worker}"))  # type: ignore[misc]
        assert {member.decode() for member in members} == ids
    types = Counter((event.job_id, event.type in set(ENDS) | {EventType.DIED}) for event in await farm.events())
    assert all(types[job_id, True] == (jobs[job_id].state in TERMINAL) for job_id in jobs)


async def wind_up(chaos: Chaos) -> None:
    """No job was lost: each one that waits can be claimed and finished, and then nothing is left."""
    farm = chaos.farm
    for worker in WORKERS:
        await farm.crash(worker)
    for job_id in await farm.redis.zrange(shard_key(0, "due"), 0, -1):
        await chaos.interfere("due", job_id.decode())
    while held := await farm.claim("last", rows=100, idle=True):
        for job in held:
            assert await farm.finish(job)
    assert all(job.state in TERMINAL for job in replay(await farm.events()).values())
    assert await farm.counts() == {}
    for pattern in ("q:*", "wait:*", "due", "ddl", "wj:*"):
        assert await farm.keys(pattern) == []
    assert sum((await farm.queue.depths(POOL)).values()) == 0


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 2**16)), min_size=20, max_size=60))
def test_whatever_happens_each_job_ends_once_and_nothing_is_left(
    redis_server: RedisServer, moves: list[tuple[str, int]]
) -> None:
    async def run() -> None:
        redis = command_client(redis_server.url)
        await redis.flushall()
        chaos = Chaos(redis)
        await chaos.play(moves)
        await check(chaos)
        await wind_up(chaos)
        await redis.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(3))
async def test_many_callers_at_once_keep_the_same_promises(redis: Redis, seed: int) -> None:
    chaos = Chaos(redis)
    dice = random.Random(seed)
    await chaos.play([("submit", dice.randrange(2**16)) for _ in range(30)])
    callers = [[(dice.choice(MOVES), dice.randrange(2**16)) for _ in range(60)] for _ in range(6)]
    await asyncio.gather(*(chaos.play(moves) for moves in callers))
    await check(chaos)
    await wind_up(chaos)
