"""The chores run in a real arq worker."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.chores import QUEUE_NAME, chore_worker, run_chores
from scheduler.process import cancel_all
from scheduler.projector import Projector
from scheduler.retention import Retention
from scheduler.settings import SchedulerSettings
from scheduler.store import Store
from tests.conftest import RedisServer
from tests.scheduler.builders import Farm, make_job
from tests.scheduler.conftest import Eventually

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated close")  # arq calls it


@pytest.fixture
def retention(farm: Farm, engine: AsyncEngine) -> Retention:
    """The retention of the farm's only shard."""
    return Retention(farm.redis, engine, farm.queue, [Projector(farm.redis, engine, farm.queue, 0)])


async def test_a_burst_worker_does_the_retention(
    farm: Farm, engine: AsyncEngine, retention: Retention, redis_server: RedisServer
) -> None:
    job = make_job(durable=True)
    await Store(engine).accept(job)
    await farm.queue.submit(job)
    (held,) = await farm.claim()
    await farm.finish(held)
    await Projector(farm.redis, engine, farm.queue, 0).step()
    settings = SchedulerSettings(redis_url=redis_server.url, result_ttl_s=0.001)
    worker = chore_worker(settings, retention, burst=True)
    await worker.pool.enqueue_job("retain")
    assert await farm.redis.exists(QUEUE_NAME) == 1
    await worker.main()
    assert (worker.jobs_complete, worker.jobs_failed) == (1, 0)
    assert await Store(engine).durable_job(job.id) is None
    await worker.close()


async def test_the_timetable_has_the_retention_on_it(retention: Retention, redis_server: RedisServer) -> None:
    worker = chore_worker(SchedulerSettings(redis_url=redis_server.url), retention)
    assert [(job.name, job.minute) for job in worker.cron_jobs] == [("cron:retain", {7, 22, 37, 52})]
    await worker.close()


async def test_chores_come_back_after_an_outage(
    own_redis_server: RedisServer, own_redis: Redis, engine: AsyncEngine, eventually: Eventually
) -> None:
    farm = Farm(own_redis)
    retention = Retention(own_redis, engine, farm.queue, [])
    settings = SchedulerSettings(redis_url=own_redis_server.url)
    own_redis_server.kill()
    running = asyncio.create_task(run_chores(settings, retention))
    own_redis_server.start()

    async def connected() -> int:
        return len([client for client in await own_redis.client_list() if client["cmd"] == "zrangebyscore"])

    await eventually(connected)
    await cancel_all([running])
