"""Jobs that may have killed their worker get a worker for themselves, in bounded time, however much else waits."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from scheduler.jobs import JobState
from scheduler.queue import shard_key
from scheduler.scripts import QueuePolicy
from tests.scheduler.builders import POOL, Farm
from tests.scheduler.conftest import Eventually


@pytest.fixture
def farm(redis: Redis) -> Farm:
    """A farm where a suspect is overdue at once."""
    return Farm(redis, QueuePolicy(age_ms=1))


async def overdue_suspect(farm: Farm) -> str:
    """A job that waits to be run alone, and has done so for long."""
    held = await farm.start("w0")
    await farm.redis.hset(shard_key(0, f"j:{held.id}"), "crashes", "1")  # type: ignore[misc]
    await farm.crash("w0")
    assert await farm.redis.zscore(shard_key(0, f"wait:{POOL}:solo"), held.id) is not None
    await farm.redis.zadd(shard_key(0, f"wait:{POOL}:solo"), {held.id: 1})
    return held.id


async def test_one_busy_worker_takes_no_more_until_it_is_empty_and_has_the_suspect(farm: Farm) -> None:
    suspect = await overdue_suspect(farm)
    normal = [await farm.submit() for _ in range(3)]
    assert await farm.claim("w1", rows=9, idle=False) == []
    await farm.redis.persist(shard_key(0, f"room:{POOL}"))  # for as long as this takes
    assert [job.id for job in await farm.claim("w2", rows=1, idle=False)] == normal[:1]
    assert await farm.claim("w1", rows=9, idle=False) == []
    (alone,) = await farm.claim("w1", rows=9, idle=True)
    assert (alone.id, alone.solo) == (suspect, True)
    assert [job.id for job in await farm.claim("w2", rows=9, idle=False)] == normal[1:]


async def test_an_overdue_suspect_goes_before_jobs_that_are_to_be_resumed(farm: Farm) -> None:
    other = await farm.start("w3")
    suspect = await overdue_suspect(farm)
    await farm.queue.release(other.id, other.token, "drain")
    (alone,) = await farm.claim("w1", rows=9)
    assert alone.id == suspect
    assert [job.id for job in await farm.claim("w2", rows=9)] == [other.id]


async def test_a_worker_that_was_to_make_room_and_has_gone_is_replaced(farm: Farm, eventually: Eventually) -> None:
    suspect = await overdue_suspect(farm)
    await farm.submit()
    assert await farm.claim("w1", idle=False) == []
    await farm.redis.delete(shard_key(0, f"room:{POOL}"))  # what its time to live does
    assert await farm.claim("w2", idle=False) == []
    (alone,) = await farm.claim("w2")
    assert alone.id == suspect
    assert await farm.state(suspect) is JobState.RUNNING


async def test_the_place_of_the_one_that_makes_room_does_not_stay_taken(farm: Farm) -> None:
    await overdue_suspect(farm)
    assert await farm.claim("w1", idle=False) == []
    left_ms = await farm.redis.pttl(shard_key(0, f"room:{POOL}"))
    assert left_ms != -1  # which is for ever; -2: it is over already
    assert left_ms <= 5_000


async def test_a_fresh_suspect_waits_for_a_worker_that_is_idle_anyway(redis: Redis) -> None:
    farm = Farm(redis)
    held = await farm.start("w0")
    await farm.redis.hset(shard_key(0, f"j:{held.id}"), "crashes", "1")  # type: ignore[misc]
    await farm.crash("w0")
    normal = await farm.submit()
    assert [job.id for job in await farm.claim("w1", idle=False)] == [normal]
