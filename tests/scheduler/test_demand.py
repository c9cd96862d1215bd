"""What waits for models that have no worker, and what becomes of it when nobody will serve them."""

from __future__ import annotations

import msgpack

from scheduler.demand import AT_ONCE, MODEL_FAILED, Demand
from scheduler.jobs import JobState, Lane, replay
from scheduler.queue import shard_key
from tests.scheduler.builders import POOL, Farm, make_job, make_request


async def test_nobody_waits_for_a_model_that_nobody_asked_for(farm: Farm) -> None:
    waiting = (await Demand(farm.queue).of(["x"]))["x"]
    assert (waiting.jobs, waiting.oldest_s) == (0, None)


async def test_jobs_of_every_lane_count_and_the_oldest_tells_how_long_the_model_is_wanted(farm: Farm) -> None:
    jobs = [make_job(lane=lane) for lane in Lane]
    for job in jobs:
        await farm.queue.submit(job)
    await farm.redis.zadd(shard_key(0, f"wait:{POOL}:low"), {jobs[-1].id: 1000})
    found = await Demand(farm.queue).of(["other", POOL])
    assert (found["other"].jobs, found[POOL].jobs) == (0, 3)
    assert (found[POOL].oldest_s or 0) > 1_000_000


async def test_a_delayed_job_that_is_due_counts_although_no_worker_looks_for_it(farm: Farm) -> None:
    job = make_job(delay_ms=600_000)
    await farm.queue.submit(job)
    demand = Demand(farm.queue)
    assert (await demand.of([POOL]))[POOL].jobs == 0
    await farm.redis.zadd(shard_key(0, "due"), {job.id: 0})
    assert (await demand.of([POOL]))[POOL].jobs == 1
    assert await farm.state(job.id) is JobState.QUEUED


async def test_jobs_of_a_model_that_has_failed_fail_with_its_reason(farm: Farm) -> None:
    waiting = [make_job(), make_job(lane=Lane.HIGH)]
    running = await farm.start()
    for job in waiting:
        await farm.queue.submit(job)
    assert await Demand(farm.queue).turn_away(POOL, "it has no weights") == 2
    assert await Demand(farm.queue).turn_away(POOL, "it has no weights") == 0
    assert await farm.state(running.id) is JobState.RUNNING
    jobs = replay(await farm.events())
    for job in waiting:
        assert (jobs[job.id].state, jobs[job.id].error_code) == (JobState.FAILED, MODEL_FAILED)
        assert jobs[job.id].error == "it has no weights"
        frame = (await farm.redis.xrange(shard_key(0, f"t:{job.id}")))[-1][1]
        assert msgpack.unpackb(frame[b"d"])[0] == "failed"
    assert await farm.redis.hget(shard_key(0, "cnt"), "jobs") == b"0"  # type: ignore[misc]


async def test_a_long_queue_is_turned_away_piece_by_piece(farm: Farm) -> None:
    for _ in range(AT_ONCE + 3):
        await farm.queue.submit(make_job())
    demand = Demand(farm.queue)
    assert [await demand.turn_away(POOL, "no") for _ in range(3)] == [AT_ONCE, 3, 0]


async def test_jobs_of_a_model_that_has_failed_go_to_who_takes_over_and_only_the_others_fail(farm: Farm) -> None:
    other = make_request(model="cloud/big", prompt_tokens=5)
    moving = make_job(request=make_request(fallbacks=(other.encode(),)), lane=Lane.LOW)
    staying = make_job()
    for job in (moving, staying):
        await farm.queue.submit(job)
    demand = Demand(farm.queue)
    assert [await demand.hand_over(POOL, "it has no weights") for _ in range(2)] == [1, 0]
    assert await demand.turn_away(POOL, "it has no weights") == 1
    jobs = replay(await farm.events())
    assert (jobs[staying.id].state, jobs[staying.id].error_code) == (JobState.FAILED, MODEL_FAILED)
    assert (jobs[moving.id].state, jobs[moving.id].model) == (JobState.QUEUED, "cloud/big")
    assert jobs[moving.id].routing["passed_over"] == [{"model": POOL, "reason": MODEL_FAILED}]
    await farm.worker()
    (held,) = await farm.queue.claim("w1", "cloud/big", rows=1, nonce="n", idle=True)
    assert (held.id, held.request) == (moving.id, other)
    assert await farm.finish(held)
    assert await farm.counts() == {}
    assert await farm.eternal_keys(moving.id) == []


async def test_a_job_that_has_said_something_is_nobody_else_s(farm: Farm) -> None:
    held = await farm.start(request=make_request(fallbacks=(make_request(model="cloud/big").encode(),)))
    await farm.say(held, 1)
    await farm.queue.release(held.id, held.token, "test")
    assert await Demand(farm.queue).hand_over(POOL, "no") == 0
    assert await farm.state(held.id) is JobState.QUEUED
