"""The reaper looks after every shard, and leaves everybody alone right after Redis has started."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from scheduler.jobs import JobState
from scheduler.process import cancel_all
from scheduler.reaper import BATCH_JOBS, Reaper
from scheduler.scripts import QueuePolicy
from tests.conftest import RedisServer
from tests.scheduler.builders import Farm, make_job
from tests.scheduler.conftest import Eventually


async def test_jobs_of_lost_workers_go_back(redis: Redis, eventually: Eventually) -> None:
    farm, short = Farm(redis), Farm(redis, QueuePolicy(lease_ms=10))
    held = await farm.start()
    assert (await short.queue.heartbeat("w1", [held.id])).alive
    assert await eventually(Reaper(short.queue).round) == 1
    assert await farm.told(held.id) == ["submitted", "claimed", "requeued"]


async def test_every_shard_is_looked_at_and_everything_touched_is_counted(redis: Redis, eventually: Eventually) -> None:
    farm = Farm(redis, shards=3)
    count = 2 * BATCH_JOBS + 10
    jobs = [make_job(shards=3, deadline_ms=1) for _ in range(count)]
    await asyncio.gather(*(farm.queue.submit(job) for job in jobs))
    touched = 0

    async def all_gone() -> bool:
        nonlocal touched
        touched += await Reaper(farm.queue).round()
        return {await farm.state(job.id) for job in jobs} == {JobState.EXPIRED}

    await eventually(all_gone)
    assert touched == count


async def test_after_a_restart_nobody_is_reaped_for_a_lease(
    own_redis_server: RedisServer, own_redis: Redis, eventually: Eventually
) -> None:
    short, long = Farm(own_redis, QueuePolicy(lease_ms=1)), Farm(own_redis)
    held = await long.start()
    assert (await Farm(own_redis, QueuePolicy(lease_ms=50)).queue.heartbeat("w1", [held.id])).alive
    own_redis_server.kill()
    own_redis_server.start()

    async def lease_over() -> bool:
        return await short.queue.live_workers() == []

    await eventually(lease_over)
    assert await Reaper(long.queue).round() == 0
    assert await long.state(held.id) is JobState.RUNNING
    assert await eventually(Reaper(short.queue).round) == 1


async def test_the_reaper_outlives_an_outage(
    own_redis_server: RedisServer, own_redis: Redis, eventually: Eventually
) -> None:
    farm = Farm(own_redis)
    own_redis_server.kill()
    running = asyncio.create_task(Reaper(farm.queue).run(period_s=0.01))
    own_redis_server.start()
    job_id = await farm.submit(deadline_ms=1)

    async def expired() -> bool:
        return await farm.state(job_id) is JobState.EXPIRED

    await eventually(expired)
    await cancel_all([running])
