"""A job goes to the worker with room that has read the beginning of its prompt, and after a grace to anybody."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from scheduler.jobs import Lane
from scheduler.prefixes import prefix_marks
from scheduler.queue import Claimed, shard_key
from scheduler.scripts import QueuePolicy
from tests.scheduler.builders import POOL, Farm, make_request
from tests.scheduler.conftest import Eventually

LONG_MS = 600_000
"""No stall of the machine ends such a grace."""

SHARED = tuple(range(1000, 1300))
OTHER = tuple(range(5000, 5300))


@pytest.fixture
async def warm(redis: Redis) -> Farm:
    """Worker `warm` has read SHARED, `cold` has not; both have room."""
    farm = Farm(redis, QueuePolicy(prefix_grace_ms=LONG_MS))
    await asked(farm, "warm")
    await farm.submit(prompts=(SHARED,))
    (held,) = await asked(farm, "warm")
    await farm.finish(held)
    for worker in ("cold", "warm"):
        assert await asked(farm, worker) == []
    return farm


async def asked(farm: Farm, worker: str, rows: int = 4, hot: int = 100) -> list[Claimed]:
    """What a worker is given."""
    await farm.worker(worker)
    nonce = f"n{next(farm._nonces)}"
    return await farm.queue.claim(worker, POOL, rows=rows, nonce=nonce, idle=True, hot=hot)


def ids(jobs: list[Claimed]) -> list[str]:
    return [job.id for job in jobs]


async def test_a_job_waits_for_the_worker_that_holds_its_beginning(warm: Farm) -> None:
    job_id = await warm.submit(prompts=((*SHARED[:200], 7, 8, 9),))
    assert await asked(warm, "cold") == []
    assert ids(await asked(warm, "warm")) == [job_id]
    assert (await warm.events(job_id))[-1].data["warm"] is True


async def test_after_the_grace_anybody_takes_it(redis: Redis, eventually: Eventually) -> None:
    farm = Farm(redis, QueuePolicy(prefix_grace_ms=1))
    await farm.submit(prompts=(SHARED,))
    await asked(farm, "warm")
    assert await asked(farm, "warm") == []
    job_id = await farm.submit(prompts=(SHARED,))
    (held,) = await eventually(lambda: asked(farm, "cold"))
    assert held.id == job_id
    assert "warm" not in (await farm.events(job_id))[-1].data


async def test_a_worker_without_room_is_not_waited_for(warm: Farm) -> None:
    for _ in range(4):
        await warm.submit(prompts=(SHARED,))
    assert len(await asked(warm, "warm")) == 4
    job_id = await warm.submit(prompts=(SHARED,))
    assert ids(await asked(warm, "cold")) == [job_id]


async def test_no_more_jobs_wait_for_a_worker_than_it_has_room_for(warm: Farm) -> None:
    jobs = [await warm.submit(prompts=(SHARED,)) for _ in range(6)]
    assert await asked(warm, "cold") == []  # the first ones are not its own, and the others stand behind them
    assert ids(await asked(warm, "warm")) == jobs[:4]
    assert ids(await asked(warm, "cold")) == jobs[4:]


async def test_whoever_stands_behind_a_job_that_waits_for_another_worker_is_served(warm: Farm) -> None:
    promised = await warm.submit(prompts=(SHARED,), tenant="a")
    fair = await warm.submit(prompts=(OTHER,), tenant="b")
    low = await warm.submit(prompts=(OTHER,), tenant="a", lane=Lane.LOW)
    assert ids(await asked(warm, "cold")) == [fair, low]
    assert ids(await asked(warm, "warm")) == [promised]


async def test_a_dead_worker_is_not_waited_for(warm: Farm) -> None:
    await warm.redis.zadd(shard_key(0, "wl"), {"warm": 1})
    job_id = await warm.submit(prompts=(SHARED,))
    assert ids(await asked(warm, "cold")) == [job_id]


async def test_a_job_that_comes_back_waits_for_nobody(warm: Farm) -> None:
    job_id = await warm.submit(prompts=(SHARED,))
    (held,) = await asked(warm, "warm")
    await warm.queue.release(held.id, held.token, "drain")
    assert ids(await asked(warm, "cold")) == [job_id]


async def test_a_worker_that_keeps_no_prefixes_is_nobody_s_choice(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(prefix_grace_ms=LONG_MS))
    await farm.submit(prompts=(SHARED,))
    await asked(farm, "forgets", hot=0)
    await asked(farm, "forgets", hot=0)
    job_id = await farm.submit(prompts=(SHARED,))
    assert ids(await asked(farm, "cold")) == [job_id]


async def test_only_the_newest_beginnings_are_remembered(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(prefix_grace_ms=LONG_MS))
    hot = shard_key(0, "hot:warm")
    await farm.submit(prompts=(SHARED,))
    await asked(farm, "warm", hot=2)
    await farm.redis.zadd(hot, {name: 1 for name in await farm.redis.zrange(hot, 0, -1)})  # long ago
    await farm.submit(prompts=(OTHER,))
    await asked(farm, "warm", hot=2)
    remembered = [name.decode() for name in await farm.redis.zrange(hot, 0, -1)]
    assert sorted(remembered) == sorted(make_request(prompts=(OTHER,)).prefix_marks())


async def test_without_a_grace_nothing_is_remembered_and_nobody_is_waited_for(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(prefix_grace_ms=0))
    await farm.submit(prompts=(SHARED,))
    await asked(farm, "warm")
    job_id = await farm.submit(prompts=(SHARED,))
    assert ids(await asked(farm, "cold")) == [job_id]
    assert await farm.keys("hot:*") == await farm.keys("promise:*") == []


@given(
    st.lists(st.integers(0, 2**31), max_size=600), st.lists(st.integers(0, 2**31), max_size=600), st.integers(0, 600)
)
def test_prompts_share_the_names_of_the_beginnings_that_they_share_and_no_others(
    one: list[int], other: list[int], shared: int
) -> None:
    prompts = [one, one[:shared] + other]
    common = next((at for at, (a, b) in enumerate(zip(*prompts, strict=False)) if a != b), min(map(len, prompts)))
    mine, theirs = (prefix_marks(prompt) for prompt in prompts)
    both = sum(size <= common and size < min(map(len, prompts)) for size in (128, 256, 512, 1024))
    assert set(mine) & set(theirs) == set(mine[len(mine) - both :])
    assert mine[len(mine) - both :] == theirs[len(theirs) - both :]
    assert len(mine) == sum(size < len(one) for size in (128, 256, 512))


def test_adapters_and_salts_share_nothing_and_images_have_no_names() -> None:
    plain = make_request(prompts=(SHARED,)).prefix_marks()
    assert len(plain) == 2
    apart: list[dict[str, Any]] = [{"adapter": "a"}, {"cache_salt": "t"}]
    for parts in apart:
        assert not set(plain) & set(make_request(prompts=(SHARED,), **parts).prefix_marks())
    assert make_request(prompts=(SHARED,), image_count=1).prefix_marks() == []
    assert make_request(prompts=(SHARED, OTHER)).prefix_marks() == []
