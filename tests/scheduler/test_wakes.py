"""A waiting job wakes the one worker that has the most room for it; silent followers are told in one call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

from scheduler.jobs import Lane
from scheduler.queue import shard_key
from tests.scheduler.builders import Farm
from tests.waiting import PATIENCE_S

Woken = Callable[[], Awaitable[list[str]]]


@pytest.fixture
async def woken(redis: Redis) -> AsyncIterator[Woken]:
    """Names of the workers that were woken since the last call."""
    async with redis.pubsub() as pubsub:
        await pubsub.psubscribe(shard_key(0, "wake:*"))
        await pubsub.get_message(timeout=PATIENCE_S)

        async def names() -> list[str]:
            await redis.publish(shard_key(0, "wake:"), "so far")
            found = []
            while (message := await pubsub.get_message(timeout=PATIENCE_S)) is not None:
                name = message["channel"].decode().rpartition(":")[2]
                if not name:
                    break
                found.append(name)
            return found

        yield names


async def test_a_job_wakes_the_worker_with_the_most_room_and_no_other(farm: Farm, woken: Woken) -> None:
    for worker, rows in (("a.0", 1), ("b.3", 5), ("c", 2)):
        assert await farm.claim(worker, rows) == []
    for _ in range(4):
        await farm.submit()
    assert await woken() == ["b", "c", "a"]


async def test_who_has_claimed_all_that_it_has_room_for_is_not_woken(farm: Farm, woken: Woken) -> None:
    await farm.claim("a.0", 2)
    await farm.submit()
    await farm.submit()
    assert len(await farm.claim("a.0", 2)) == 2
    assert await woken() == ["a"]
    await farm.submit()
    assert await woken() == []


async def test_reserved_room_is_woken_for_the_high_lane_only(farm: Farm, woken: Woken) -> None:
    await farm.claim("a.0", 2, reserved=2)
    await farm.submit(lane=Lane.NORMAL)
    assert await woken() == []
    await farm.submit(lane=Lane.HIGH)
    assert await woken() == ["a"]


async def test_a_worker_whose_lease_has_ended_is_passed_over(farm: Farm, woken: Woken) -> None:
    await farm.claim("dead.0", 9)
    await farm.claim("alive.0", 1)
    await farm.redis.zadd(shard_key(0, "wl"), {"dead.0": 1})
    await farm.submit()
    assert await woken() == ["alive"]


async def test_a_job_that_comes_back_wakes_somebody_too(farm: Farm, woken: Woken) -> None:
    held = await farm.start("a.0")
    await farm.claim("b.0", 1)
    await farm.queue.release(held.id, held.token, "drain")
    assert await woken() == ["b"]
    await farm.claim("b.0", 1)
    await farm.claim("c.0", 1)
    await farm.crash("b.0")
    assert await woken() == ["c"]


async def test_only_followers_that_have_missed_something_are_told(farm: Farm) -> None:
    held = await farm.start(node="n1")
    other = await farm.submit(node="n2")
    await farm.say(held, 1)
    gone = held.id[:-1] + "0"
    for last, expected in ((1, [2, 3]), (0, [1, 2, 3]), (2, [1, 2, 3])):
        asked = ["n1", held.id, last, other, 0, gone, 0]
        assert await farm.queue.run("glance", 0, *asked) == expected
    await farm.queue.leave(held.id, 60_000)
    assert await farm.queue.run("glance", 0, "n1", held.id, 1) == [1]
