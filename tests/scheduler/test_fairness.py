"""Fairness on virtual time: a lane's wait is bounded in tokens, tenants share by weight, people go first."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from bench.virtual_time import POOL, VirtualFarm, VirtualQueue
from scheduler.connections import command_client
from scheduler.jobs import Lane
from scheduler.queue import shard_key
from scheduler.scripts import QueuePolicy
from tests.conftest import RedisServer

AGE_MS = 1000
SHARE = 0.25
LANES = list(Lane)
MOST_TOKENS = 40


def make_farm(redis: Redis, rows: int = 1, **weights: float) -> VirtualFarm:
    policy = QueuePolicy(age_ms=AGE_MS, aged_share=SHARE, lease_ms=10**9, tenant_weights=tuple(weights.items()))
    return VirtualFarm(VirtualQueue(redis, policy), rows, tick_ms=100)


def overdue(farm: VirtualFarm) -> set[Lane]:
    """Lanes whose oldest job has waited too long."""
    waits = {lane: 0 for lane in Lane}
    for job in farm.jobs.values():
        if job.claimed_ms is None:
            waits[job.lane] = max(waits[job.lane], farm.now_ms - job.submitted_ms)
    return {lane for i, lane in enumerate(LANES) if i and waits[lane] > i * AGE_MS}


arrivals = st.lists(
    st.tuples(st.sampled_from(LANES), st.integers(1, MOST_TOKENS - 6), st.integers(1, 6)), min_size=20, max_size=60
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=arrivals, per_tick=st.sampled_from([0.2, 0.5, 1, 10]))
def test_others_get_no_more_than_their_part_while_a_lane_is_overdue(
    redis_server: RedisServer, jobs: list[tuple[Lane, int, int]], per_tick: float
) -> None:
    asyncio.run(_check_bound(redis_server.url, jobs, per_tick))


async def _check_bound(url: str, jobs: list[tuple[Lane, int, int]], per_tick: float) -> None:
    """An overdue lane is served before the others have had (1/share - 1) times its last job, and two jobs more."""
    redis = command_client(url)
    await redis.flushall()
    farm, cost = make_farm(redis), {}
    others = dict.fromkeys(LANES, 0)
    bound = MOST_TOKENS * (1 / SHARE - 1) + 2 * MOST_TOKENS
    tick, coming = 0, list(jobs)
    while coming or any(job.claimed_ms is None for job in farm.jobs.values()):
        tick += 1
        while coming and len(farm.jobs) < tick * per_tick:
            lane, prompt, answer = coming.pop(0)
            cost[await farm.submit("t", lane, prompt=prompt, answer=answer)] = prompt + answer
        late = overdue(farm)
        others = {lane: others[lane] if lane in late else 0 for lane in LANES}
        for job_id in await farm.tick():
            served = farm.jobs[job_id].lane
            for lane in late:
                others[lane] = 0 if lane is served else others[lane] + cost[job_id]
        assert all(tokens <= bound for tokens in others.values()), others
    await redis.aclose()


async def test_the_first_overdue_job_is_next(redis: Redis) -> None:
    farm = make_farm(redis)
    low = await farm.submit("t", Lane.LOW, prompt=1, answer=1)
    for tick in range(40):
        await farm.submit("t", Lane.HIGH, prompt=1, answer=1)
        claimed = await farm.tick()
        assert (low in claimed) is (tick == 21)  # two lanes above: after 2 s, of ten ticks each


async def test_a_waiting_batch_takes_no_more_than_its_share_from_the_people_at_work(redis: Redis) -> None:
    farm = make_farm(redis)
    for _ in range(150):
        await farm.submit("batch", Lane.LOW, prompt=9, answer=1)
    farm.now_ms += 600_000
    claimed: list[Lane] = []
    for _ in range(80):
        await farm.submit("people", Lane.HIGH, prompt=9, answer=1)
        claimed += [farm.jobs[job_id].lane for job_id in await farm.tick()]
    assert claimed.count(Lane.LOW) == 80 * SHARE


@pytest.mark.parametrize("weight", [1.0, 3.0])
async def test_shares_follow_the_weights_within_five_percent(redis: Redis, weight: float) -> None:
    farm = make_farm(redis, rows=4, modest=weight)
    for i in range(600):
        await farm.submit("busy", Lane.NORMAL, prompt=20, answer=10)
        if i % 5 == 0:
            await farm.submit("modest", Lane.NORMAL, prompt=5, answer=30)
    for _ in range(400):
        await farm.tick()
    totals = {tenant: sum(n for (name, _), n in farm.tokens.items() if name == tenant) for tenant in ("busy", "modest")}
    assert all(any(j.claimed_ms is None for j in farm.jobs.values() if j.tenant == tenant) for tenant in totals)
    assert totals["modest"] / sum(totals.values()) == pytest.approx(weight / (weight + 1), rel=0.05)


async def counters(redis: Redis) -> dict[str, float]:
    """What each waiting tenant has had."""
    entries = await redis.zrange(shard_key(0, f"act:{POOL}:normal"), 0, -1, withscores=True)
    return {name.decode(): score for name, score in entries}


async def test_output_is_charged_while_it_is_produced(redis: Redis) -> None:
    farm = make_farm(redis, t=2.0)
    for _ in range(2):
        await farm.submit("t", Lane.NORMAL, prompt=5, answer=100)
    await farm.tick()
    assert await counters(redis) == {"t": 2.5}
    for _ in range(40):
        await farm.tick()
    assert await counters(redis) == {"t": 2.5 + 32 / 2}
    for _ in range(59):
        await farm.tick()
    assert await counters(redis) == {"t": 2.5 + 100 / 2}


async def test_who_was_idle_while_others_were_served_starts_where_they_are(redis: Redis) -> None:
    farm = make_farm(redis)
    for _ in range(3):
        await farm.submit("busy", Lane.NORMAL, prompt=5, answer=64)
    for _ in range(40):
        await farm.tick()
    await farm.submit("new", Lane.NORMAL, prompt=5, answer=5)
    assert await counters(redis) == {"busy": 37, "new": 37}
