"""Who gets which job: lanes, age, fair shares, rows, and a claim whose reply was lost."""

from __future__ import annotations

from collections import Counter

import pytest
from redis.asyncio import Redis

from scheduler.errors import NoLease
from scheduler.jobs import JobState, Lane
from scheduler.queue import shard_key
from scheduler.scripts import QueuePolicy
from tests.scheduler.builders import POOL, Farm
from tests.scheduler.conftest import Eventually


async def test_a_worker_without_a_lease_gets_nothing(farm: Farm) -> None:
    await farm.submit()
    with pytest.raises(NoLease):
        await farm.queue.claim("nobody", POOL, rows=1, nonce="n", idle=True)


async def test_a_worker_whose_lease_has_ended_gets_nothing(redis: Redis, eventually: Eventually) -> None:
    farm = Farm(redis, QueuePolicy(lease_ms=20))
    await farm.worker()

    async def lost() -> bool:
        try:
            await farm.queue.claim("w1", POOL, rows=1, nonce="n", idle=True)
        except NoLease:
            return True
        return False

    await eventually(lost)


async def test_a_claimed_job_says_who_holds_it(farm: Farm) -> None:
    job_id = await farm.submit()
    (held,) = await farm.claim()
    snapshot = await farm.queue.snapshot(job_id)
    assert snapshot is not None
    assert (snapshot["state"], snapshot["wid"], snapshot["tok"]) == ("running", "w1", held.token)
    assert (held.generation, held.sequence, held.attempt, held.solo) == (held.claimed_ms, 0, 1, False)
    assert held.claimed_ms >= held.submitted_ms
    assert await farm.told(job_id) == ["submitted", "claimed"]
    assert await farm.claim() == []


async def test_a_claimed_job_says_which_lane_it_asked_for(farm: Farm) -> None:
    for lane in Lane:
        await farm.submit(lane=lane)
    assert {job.lane for job in await farm.claim(rows=9)} == set(Lane)


async def test_the_same_nonce_gets_the_same_answer(farm: Farm) -> None:
    for _ in range(5):
        await farm.submit()
    first = await farm.claim(rows=3, nonce="same")
    assert await farm.claim(rows=3, nonce="same") == first
    assert len(await farm.events()) == 8
    assert len(await farm.claim(rows=3, nonce="next")) == 2


async def test_the_same_nonce_does_not_give_an_ended_job_again(farm: Farm) -> None:
    for _ in range(2):
        await farm.submit()
    first, second = await farm.claim(rows=2, nonce="same")
    await farm.finish(first)
    assert await farm.claim(rows=2, nonce="same") == [second]


async def test_a_lost_reply_about_a_suspect_is_answered_again(farm: Farm) -> None:
    held = await farm.start()
    await farm.redis.hset(shard_key(0, f"j:{held.id}"), "crashes", "1")  # type: ignore[misc]
    await farm.crash()
    (solo,) = await farm.claim(nonce="same")
    await farm.submit()
    assert solo.solo
    assert await farm.claim(nonce="same") == [solo]


async def test_tokens_are_never_the_same_twice(farm: Farm) -> None:
    held = await farm.start()
    tokens = {held.token}
    for _ in range(5):
        await farm.queue.release(held.id, held.token, "again")
        (held,) = await farm.claim(nonce="same nonce")
        tokens.add(held.token)
    assert len(tokens) == 6


async def test_higher_lanes_come_first_and_the_oldest_first_within_one(farm: Farm) -> None:
    low, normal, high, normal2 = [
        await farm.submit(lane=lane) for lane in (Lane.LOW, Lane.NORMAL, Lane.HIGH, Lane.NORMAL)
    ]
    assert [job.id for job in await farm.claim(rows=9)] == [high, normal, normal2, low]


async def test_a_job_that_waits_long_enough_overtakes_higher_lanes(redis: Redis, eventually: Eventually) -> None:
    farm = Farm(redis, QueuePolicy(age_ms=5))
    low = await farm.submit(lane=Lane.LOW)
    begin = (await farm.queue.snapshot(low) or {})["enq"]

    async def old() -> bool:
        seconds, micros = await redis.time()
        return bool(seconds * 1000 + micros // 1000 > int(begin) + 30)

    await eventually(old)
    high = await farm.submit(lane=Lane.HIGH)
    assert [job.id for job in await farm.claim(rows=2)] == [low, high]


async def served(farm: Farm, claims: int) -> Counter[str]:
    """Which tenants get the next claims, by tokens."""
    totals: Counter[str] = Counter()
    for _ in range(claims):
        (job,) = await farm.claim(idle=False)
        snapshot = await farm.queue.snapshot(job.id)
        assert snapshot is not None
        totals[snapshot["tenant"]] += int(snapshot["prompt"])
    return totals


async def test_tenants_share_by_tokens_not_by_jobs(farm: Farm) -> None:
    for _ in range(60):
        await farm.submit(tenant="large", prompt_tokens=400)
        await farm.submit(tenant="small", prompt_tokens=100)
    totals = await served(farm, 50)
    assert abs(totals["large"] - totals["small"]) <= 400
    assert totals["large"] == 4000


async def test_a_tenant_of_twice_the_weight_gets_twice_the_tokens(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(tenant_weights=(("heavy", 2.0),)))
    for _ in range(60):
        await farm.submit(tenant="heavy", prompt_tokens=100)
        await farm.submit(tenant="light", prompt_tokens=100)
    totals = await served(farm, 60)
    assert totals["heavy"] == 4000


async def test_being_idle_earns_no_credit(farm: Farm) -> None:
    for _ in range(30):
        await farm.submit(tenant="busy", prompt_tokens=100)
    await served(farm, 20)
    for _ in range(20):
        await farm.submit(tenant="new", prompt_tokens=100)
    totals = await served(farm, 10)
    assert abs(totals["busy"] - totals["new"]) <= 100


async def test_leaving_and_coming_back_does_not_begin_the_count_again(farm: Farm) -> None:
    await farm.submit(tenant="greedy", prompt_tokens=10_000)
    for _ in range(20):
        await farm.submit(tenant="modest", prompt_tokens=100)
    assert set(await served(farm, 6)) == {"greedy", "modest"}
    await farm.submit(tenant="greedy", prompt_tokens=100)
    assert set(await served(farm, 15)) == {"modest"}
    assert set(await served(farm, 1)) == {"greedy"}


async def test_returned_jobs_come_before_all_lanes(farm: Farm) -> None:
    held = await farm.start(lane=Lane.LOW)
    high = await farm.submit(lane=Lane.HIGH)
    await farm.queue.release(held.id, held.token, "drain")
    assert [job.id for job in await farm.claim(rows=2)] == [held.id, high]


async def test_a_suspect_runs_alone_on_an_idle_worker(farm: Farm) -> None:
    held = await farm.start()
    await farm.redis.hset(shard_key(0, f"j:{held.id}"), "crashes", "1")  # type: ignore[misc]
    await farm.crash()
    normal = [await farm.submit() for _ in range(3)]
    assert [job.id for job in await farm.claim(rows=1, idle=False)] == normal[:1]
    (alone,) = await farm.claim("w2", rows=9)
    assert (alone.id, alone.solo) == (held.id, True)
    assert [job.id for job in await farm.claim(rows=9)] == normal[1:]


async def test_rows_are_a_budget_that_only_the_last_job_may_exceed(farm: Farm) -> None:
    ids = [await farm.submit(n=n) for n in (2, 3, 2, 8, 1)]
    assert [job.id for job in await farm.claim(rows=6)] == ids[:3]
    assert [job.id for job in await farm.claim(rows=1)] == ids[3:4]
    assert await farm.claim(rows=0) == []


async def test_a_cancelled_waiting_job_is_never_claimed(farm: Farm) -> None:
    ids = [await farm.submit() for _ in range(5)]
    for job_id in ids[::2]:
        await farm.queue.cancel(job_id, "me")
    assert [job.id for job in await farm.claim(rows=9)] == ids[1::2]


async def test_an_entry_whose_job_is_elsewhere_is_dropped(farm: Farm) -> None:
    first = await farm.submit()
    backlog = shard_key(0, f"q:{POOL}:normal:default")
    await farm.redis.xadd(backlog, {"j": first})
    await farm.redis.xadd(backlog, {"j": "0-NEVERWAS"})
    second = await farm.submit()
    assert [job.id for job in await farm.claim(rows=9)] == [first, second]
    assert await farm.claim(rows=9) == []
    assert await farm.redis.xlen(backlog) == 2


@pytest.mark.parametrize("lane", ["normal", "resume", "solo"])
async def test_a_job_whose_backlog_was_lost_is_put_back(farm: Farm, lane: str) -> None:
    if lane == "normal":
        job_id = await farm.submit()
    else:
        held = await farm.start()
        job_id = held.id
        await farm.redis.hset(shard_key(0, f"j:{job_id}"), "crashes", "1" if lane == "solo" else "0")  # type: ignore[misc]
        await farm.crash()
    for name in await farm.keys("q:*") + await farm.keys("act:*"):
        await farm.redis.delete(shard_key(0, name))
    assert [job.id for job in await farm.claim()] == [job_id]
    assert await farm.counts() == {"t:default": 1, "T:default": 10}


async def test_a_new_backlog_never_gives_out_the_entry_of_a_running_job(farm: Farm) -> None:
    """Submit, claim and empty claim within one ms would otherwise let the next entry have the same id."""
    for _ in range(200):
        first = await farm.start()
        await farm.claim()
        second = await farm.submit()
        await farm.finish(first)
        assert [job.id for job in await farm.claim()] == [second]
        await farm.queue.cancel(second, "me")
        await farm.crash()
    assert await farm.keys("q:*") == []


async def test_a_delayed_job_waits_until_it_is_due(farm: Farm) -> None:
    held = await farm.start(lane=Lane.LOW)
    await farm.queue.release(held.id, held.token, "retry", 600_000)
    assert await farm.claim() == []
    assert await farm.state(held.id) is JobState.DELAYED
    await farm.redis.zadd(shard_key(0, "due"), {held.id: 1})
    (again,) = await farm.claim()
    assert (again.id, again.attempt) == (held.id, 2)
    assert await farm.told(held.id) == ["submitted", "claimed", "delayed", "requeued", "claimed"]


async def test_a_tenant_may_be_called_anything(farm: Farm) -> None:
    names = ["_", "a b", "é", "{x}", "w:1"]
    ids = {await farm.submit(tenant=name) for name in names}
    assert {job.id for job in await farm.claim(rows=9)} == ids


async def test_reserved_rows_go_to_the_high_lane_only(farm: Farm) -> None:
    normal = [await farm.submit(lane=Lane.NORMAL) for _ in range(4)]
    assert [job.id for job in await farm.claim(rows=3, reserved=2)] == normal[:1]
    high = [await farm.submit(lane=Lane.HIGH) for _ in range(4)]
    assert [job.id for job in await farm.claim(rows=2, reserved=2)] == high[:2]
    assert [job.id for job in await farm.claim(rows=1, reserved=9)] == high[2:3]
    assert [job.id for job in await farm.claim(rows=4, reserved=2)] == [high[3], normal[1]]


async def test_a_suspect_runs_alone_also_where_rows_are_reserved(farm: Farm) -> None:
    held = await farm.start()
    await farm.redis.hset(shard_key(0, f"j:{held.id}"), "crashes", "1")  # type: ignore[misc]
    await farm.crash()
    await farm.submit(lane=Lane.HIGH)
    (solo,) = await farm.claim(rows=4, reserved=2)
    assert (solo.id, solo.solo) == (held.id, True)
