"""What the queue refuses, how fast it drains, and where a waiting job stands."""

from __future__ import annotations

import time
from typing import Any

import pytest
from redis.asyncio import Redis

from scheduler.backpressure import LONGEST_S, SHORTEST_S, SPREAD, UNKNOWN_S, Place
from scheduler.errors import QueueFull
from scheduler.jobs import Lane
from scheduler.queue import shard_key
from scheduler.scripts import QueuePolicy
from tests.scheduler.builders import POOL, Farm, make_job

COST = 10
"""Of a job that the builders make."""


async def busy_for(farm: Farm, seconds: float, pool: str = POOL) -> None:
    """The last measurement, and the beginning of the wait, lie so far back."""
    now_s, micros = await farm.redis.time()
    since = int(now_s * 1000 + micros // 1000 - seconds * 1000)
    await farm.redis.hset(shard_key(0, f"rate:{pool}"), mapping={"from": since, "at": since})  # type: ignore[misc]


async def drain(farm: Farm, jobs: int, seconds: float) -> float:
    """`jobs` of those that wait run and end in so many seconds; and in so many more, which the test has taken."""
    held = await farm.claim(rows=jobs)
    began_s = time.monotonic()
    await busy_for(farm, seconds)
    for job in held:
        await farm.finish(job)
    return time.monotonic() - began_s


@pytest.mark.parametrize(
    ("policy", "scope"),
    [
        (QueuePolicy(max_waiting_jobs=2), "jobs waiting"),
        (QueuePolicy(max_waiting_tokens=29), "tokens waiting"),
        (QueuePolicy(max_model_jobs=2), "jobs waiting for this model"),
        (QueuePolicy(max_model_tokens=29), "tokens waiting for this model"),
        (QueuePolicy(max_tenant_jobs=2), "jobs of this tenant"),
        (QueuePolicy(max_tenant_tokens=29), "tokens of this tenant"),
    ],
)
async def test_a_bound_refuses_a_job_whole(redis: Redis, policy: QueuePolicy, scope: str) -> None:
    farm = Farm(redis, policy)
    await farm.submit()
    await farm.submit()
    keys = await farm.keys()
    with pytest.raises(QueueFull, match=rf"{scope}:"):
        await farm.submit(idempotency_key="k")
    with pytest.raises(QueueFull, match=rf"{scope}:"):
        await farm.queue.require_room(make_job())
    assert await farm.keys() == keys


async def test_exactly_the_bound_is_accepted(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(max_waiting_tokens=2 * COST, max_tenant_tokens=2 * COST, max_model_jobs=2))
    for lane in (Lane.LOW, Lane.HIGH):
        await farm.queue.require_room(make_job(lane=lane))
        await farm.submit(lane=lane)


async def test_lower_lanes_leave_a_part_of_the_queue_to_the_high_one(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(max_waiting_jobs=32, max_model_tokens=16 * COST))
    for _ in range(15):
        await farm.submit(lane=Lane.NORMAL)
    for lane in (Lane.NORMAL, Lane.LOW):
        with pytest.raises(QueueFull, match=f"tokens waiting for this model: {15 * COST}"):
            await farm.submit(lane=lane)
        with pytest.raises(QueueFull):
            await farm.queue.require_room(make_job(lane=lane))
    await farm.queue.require_room(make_job(lane=Lane.HIGH))
    await farm.submit(lane=Lane.HIGH)
    with pytest.raises(QueueFull, match=f"{16 * COST}"):
        await farm.submit(lane=Lane.HIGH)


def bounded(whose: str, unit: str) -> QueuePolicy:
    """Room for one job of COST tokens."""
    changes: dict[str, Any] = {f"max_{whose}_{unit}": 1 if unit == "jobs" else COST}
    return QueuePolicy(**changes)


@pytest.mark.parametrize("bound", ["jobs", "tokens"])
async def test_the_bound_of_a_tenant_counts_running_jobs_and_no_others_tenants(redis: Redis, bound: str) -> None:
    farm = Farm(redis, bounded("tenant", bound))
    held = await farm.start(tenant="a")
    with pytest.raises(QueueFull):
        await farm.submit(tenant="a")
    await farm.submit(tenant="b")
    await farm.finish(held)
    await farm.submit(tenant="a")


@pytest.mark.parametrize("bound", ["jobs", "tokens"])
async def test_the_bound_of_a_model_counts_waiting_jobs_and_no_other_models(redis: Redis, bound: str) -> None:
    farm = Farm(redis, bounded("model", bound))
    await farm.submit()
    with pytest.raises(QueueFull):
        await farm.submit()
    await farm.submit(pool="other")
    await farm.claim()
    await farm.submit()


async def test_each_shard_has_its_part_of_a_bound(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(max_waiting_jobs=7), shards=4)
    for _ in range(2):
        await farm.queue.submit(make_job(id=f"0-{make_job().id[2:]}"))
    with pytest.raises(QueueFull, match="7"):
        await farm.queue.submit(make_job(id=f"0-{make_job().id[2:]}"))
    await farm.queue.submit(make_job(id=f"1-{make_job().id[2:]}"))


async def test_an_unmeasured_queue_guesses_how_long_to_wait(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(max_waiting_jobs=1))
    await farm.submit()
    with pytest.raises(QueueFull) as refusal:
        await farm.submit()
    assert UNKNOWN_S <= refusal.value.retry_after_s <= UNKNOWN_S * (1 + SPREAD)


async def test_the_wait_follows_what_drains(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(max_waiting_tokens=100 * COST, drain_ms=10**9))
    for _ in range(100):
        await farm.submit(lane=Lane.HIGH)
    late_s = await drain(farm, 10, seconds=20)
    for _ in range(10):
        await farm.submit(lane=Lane.HIGH)
    with pytest.raises(QueueFull) as refusal:
        await farm.submit(lane=Lane.HIGH)
    # 5 % of the bound are 50 tokens, and 100 drained in 20 s
    assert 10 <= refusal.value.retry_after_s <= (10.1 + late_s) * (1 + SPREAD)


@pytest.mark.parametrize(("seconds", "expected_s"), [(0.01, SHORTEST_S), (1e6, LONGEST_S)])
async def test_the_wait_stays_within_what_clients_bear(redis: Redis, seconds: float, expected_s: float) -> None:
    farm = Farm(redis, QueuePolicy(max_waiting_jobs=3, drain_ms=10**9))
    for _ in range(3):
        await farm.submit()
    late_s = await drain(farm, 1, seconds)
    await farm.submit()
    with pytest.raises(QueueFull) as refusal:
        await farm.submit()
    longest_s = min(expected_s + late_s, LONGEST_S)
    assert expected_s <= refusal.value.retry_after_s <= longest_s * (1 + SPREAD)


async def test_position_counts_what_is_served_first(farm: Farm) -> None:
    returned, suspect = await farm.start(), await farm.start()
    await farm.queue.release(returned.id, returned.token, "drain")
    await farm.redis.hset(shard_key(0, f"j:{suspect.id}"), "crashes", "1")  # type: ignore[misc]
    await farm.crash()
    low, high, normal, second = [
        await farm.submit(lane=lane) for lane in (Lane.LOW, Lane.HIGH, Lane.NORMAL, Lane.NORMAL)
    ]
    wanted = {returned.id: 1, suspect.id: 2, high: 2, normal: 3, second: 4, low: 5}
    assert {job_id: await farm.queue.place(job_id) for job_id in wanted} == {
        job_id: Place(position, None, POOL) for job_id, position in wanted.items()
    }
    (held,) = await farm.claim()
    assert await farm.queue.place(held.id) is None


async def test_a_tenants_flood_does_not_stand_before_another_tenants_only_job(farm: Farm) -> None:
    for _ in range(50):
        await farm.submit(tenant="flood")
    alone = await farm.submit(tenant="modest")
    last = await farm.submit(tenant="flood")
    places = [await farm.queue.place(job_id) for job_id in (alone, last)]
    assert [place and place.position for place in places] == [2, 52]


async def test_the_expected_wait_is_the_work_before_over_what_drains(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(drain_ms=10**9))
    ids = [await farm.submit() for _ in range(6)]
    await drain(farm, 2, seconds=40_000)
    places = [await farm.queue.place(job_id) for job_id in ids]
    assert places[:2] == [None, None]
    assert [place and place.eta_s for place in places[2:]] == pytest.approx([20_000, 40_000, 60_000, 80_000], rel=0.05)


async def test_idle_time_does_not_make_the_farm_look_slow(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(drain_ms=10**9))
    for _ in range(3):
        await farm.submit()
    await drain(farm, 2, seconds=20_000)
    (last,) = await farm.claim()
    await farm.redis.hincrby(shard_key(0, f"rate:{POOL}"), "at", -(10**9))  # type: ignore[misc]
    await farm.finish(last)
    place = await farm.queue.place(await farm.submit())
    assert place is not None
    assert place.eta_s == pytest.approx(10_000, rel=0.1)


async def test_a_farm_that_stops_draining_is_seen_to_be_slower(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(drain_ms=10_000_000))
    ids = [await farm.submit() for _ in range(3)]
    await drain(farm, 1, seconds=1_000)
    before = await farm.queue.place(ids[2])
    await busy_for(farm, 30_000)
    after = await farm.queue.place(ids[2])
    assert before is not None
    assert after is not None
    assert (after.eta_s or 0) > 10 * (before.eta_s or 0)


async def test_what_was_cancelled_while_it_waited_did_not_drain(farm: Farm) -> None:
    for job_id in [await farm.submit() for _ in range(3)]:
        await farm.queue.cancel(job_id, "me")
    assert await farm.queue.place(await farm.submit()) == Place(1, None, POOL)
