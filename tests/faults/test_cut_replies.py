"""Replies that get lost: each of a job's moves is carried out, its caller does not hear of it and asks again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

import scheduler.connections
from scheduler.backpressure import Limits
from scheduler.connections import command_client
from scheduler.errors import QueueUnavailable
from scheduler.frames import Chunk, FrameId
from scheduler.limits import Limiter
from scheduler.queue import NewJob
from scheduler.tokens import Emission, EmitCode
from tests.conftest import RedisServer
from tests.faults.redis_proxy import RedisProxy
from tests.scheduler.builders import Farm, make_job

LIMITS = Limits(requests_per_minute=1000, concurrent_jobs=1000)
FRAMES = 3


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[RedisProxy]:
    """Between the client and the server."""
    proxy = RedisProxy(redis_server.socket)
    yield proxy
    proxy.close()


@pytest.fixture
async def cut_off(redis: Redis, proxy: RedisProxy) -> AsyncIterator[Redis]:
    """A client of the emptied server, through the proxy."""
    client = command_client(proxy.url)
    yield client
    await client.aclose()


async def insist(call: Callable[[], Awaitable[Any]]) -> Any:
    """As the worker and the API do: again, until there is an answer."""
    while True:
        try:
            return await call()
        except QueueUnavailable:
            continue


async def live(farm: Farm, limiter: Limiter, job: NewJob, nonce: str) -> list[EmitCode]:
    """One job from the door to its settlement, every call repeated until it is answered; what the emits said."""
    budget = {"input_tokens": 3, "output_tokens": 7, "keep_s": 60}
    await insist(lambda: limiter.admit(job.budget, LIMITS, job.id, **budget))
    assert await insist(lambda: farm.queue.submit(job)) == job.id
    await insist(lambda: farm.queue.heartbeat("w1", [], register=True))
    (held,) = await insist(lambda: farm.queue.claim("w1", "demo", rows=1, nonce=nonce, idle=True))
    codes = []
    for sequence in range(1, FRAMES + 1):
        frame = FrameId(held.generation, sequence)
        emission = Emission(held.id, held.token, frame, (Chunk(0, (sequence,), "a"),))
        codes += await insist(partial(farm.log.emit, [emission]))
        await insist(lambda: farm.queue.heartbeat("w1", [held.id]))
    assert await insist(lambda: farm.finish(held))
    await insist(lambda: limiter.settle(0))
    return codes


@pytest.mark.parametrize("in_a_row", [1, 2, 3])
async def test_a_job_ends_once_with_its_text_whichever_reply_is_lost(
    cut_off: Redis, proxy: RedisProxy, in_a_row: int
) -> None:
    """F11, F12: for every command of a job's life, by the client's own retry and by the caller's."""
    farm = Farm(cut_off)
    limiter = Limiter(cut_off, farm.queue)
    before = proxy.commands
    await live(farm, limiter, make_job(budget="key"), "undisturbed")
    moves = proxy.commands - before
    repeated: set[EmitCode] = set()
    for lost in range(1, moves + 1):
        job = make_job(budget="key")
        proxy.lose_replies(lost, in_a_row)
        repeated |= set(await live(farm, limiter, job, f"n{lost}"))
        proxy.lose_replies(0, 0)
        assert await farm.told(job.id) == ["submitted", "claimed", "finished"]
        sequences = [frame.id.sequence for frame in await farm.log.read(job.id)]
        assert sequences == list(range(1, FRAMES + 2))
    assert repeated == {EmitCode.OK, EmitCode.DUPLICATE}
    assert await farm.counts() == {}
    assert await cut_off.zcard("{limit.key}:jobs") == 0


async def test_a_job_is_done_on_a_slow_line(cut_off: Redis, proxy: RedisProxy) -> None:
    """F23: nothing is lost, refused or done twice because each way takes 20 ms."""
    farm = Farm(cut_off)
    proxy.latency_s = 0.02
    job = make_job(budget="key")
    told = await live(farm, Limiter(cut_off, farm.queue), job, "slow")
    assert set(told) <= {EmitCode.OK, EmitCode.DUPLICATE}  # the second, where a stall of the machine was added
    assert await farm.told(job.id) == ["submitted", "claimed", "finished"]


@pytest.fixture
async def impatient(redis: Redis, proxy: RedisProxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Redis]:
    """The same client with a time limit."""
    monkeypatch.setattr(scheduler.connections, "ANSWER_S", 1.0)
    client = command_client(proxy.url)
    yield client
    await client.aclose()


async def test_silence_is_unavailability_for_all_who_ask_at_once(impatient: Redis, proxy: RedisProxy) -> None:
    """F22: who asks waits for a time limit, not behind the others who wait; what was asked was not done twice."""
    farm = Farm(impatient)
    jobs = [make_job() for _ in range(20)]
    with proxy.silence():
        refused = [asyncio.create_task(farm.queue.submit(job)) for job in jobs]
        for task in refused:
            with pytest.raises(QueueUnavailable):
                await task
    for job in jobs:
        await insist(partial(farm.queue.submit, job))
    assert sorted(event.job_id for event in await farm.events()) == sorted(job.id for job in jobs)
