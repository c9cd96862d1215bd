"""What is past its time is forgotten, and a rebuild makes the same tables before and after."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.jobs import JobState
from scheduler.projector import HOUR_MS, Projector, rebuild
from scheduler.queue import event_key, shard_key
from scheduler.retention import Forgotten, Retention
from scheduler.store import JobFilter, Store
from scheduler.tables import DurableJobRow, EventRow, JobRow, UsageRow
from tests.scheduler.builders import Farm, make_job

NOTHING = Forgotten(0, 0, 0, 0, 0)
TTLS = {"result_ttl_ms": HOUR_MS, "record_ttl_ms": 10 * HOUR_MS, "trim_margin_ms": HOUR_MS}


@pytest.fixture
def projector(farm: Farm, engine: AsyncEngine) -> Projector:
    """The projector of the farm's only shard."""
    return Projector(farm.redis, engine, farm.queue, 0)


@pytest.fixture
def retention(farm: Farm, engine: AsyncEngine, projector: Projector) -> Retention:
    """The retention of the farm's only shard."""
    return Retention(farm.redis, engine, farm.queue, [projector])


async def durable(farm: Farm, engine: AsyncEngine) -> str:
    """An async job that has ended."""
    job = make_job(durable=True)
    await Store(engine).accept(job)
    await farm.queue.submit(job)
    (held,) = await farm.claim()
    await farm.finish(held)
    return job.id


async def now_ms(farm: Farm) -> int:
    return (await farm.events())[-1].at_ms


async def all_rows(engine: AsyncEngine) -> list[Any]:
    async with engine.connect() as connection:
        return [
            sorted(map(repr, (await connection.execute(select(table.__table__))).all()))
            for table in (JobRow, UsageRow, EventRow)
        ]


async def test_what_is_young_is_kept(
    farm: Farm, engine: AsyncEngine, projector: Projector, retention: Retention
) -> None:
    job_id = await durable(farm, engine)
    await projector.step()
    assert await retention.run(now_ms=await now_ms(farm), **TTLS) == NOTHING
    assert await Store(engine).durable_job(job_id) is not None


async def test_results_go_after_their_time_and_waiting_jobs_stay(
    farm: Farm, engine: AsyncEngine, projector: Projector, retention: Retention
) -> None:
    ended = await durable(farm, engine)
    waiting = await Store(engine).accept(make_job(durable=True))
    await projector.step()
    later = await now_ms(farm) + 2 * HOUR_MS
    forgotten = await retention.run(now_ms=later, **TTLS)
    assert (forgotten.results, forgotten.jobs) == (1, 0)
    assert await Store(engine).durable_job(ended) is None
    assert await Store(engine).durable_job(waiting) is not None


async def test_a_record_goes_with_its_events_and_a_rebuild_changes_nothing(
    farm: Farm, engine: AsyncEngine, projector: Projector, retention: Retention
) -> None:
    old = await farm.start()
    await farm.finish(old)
    waiting = await farm.submit(tenant="other")
    await projector.step()
    await set_back(engine, old.id, 20 * HOUR_MS)
    before = await all_rows(engine)
    forgotten = await retention.run(now_ms=await now_ms(farm), **TTLS)
    assert (forgotten.jobs, forgotten.events) == (1, 3)
    assert await retention.run(now_ms=await now_ms(farm), **TTLS) == NOTHING
    kept = await Store(engine).jobs(JobFilter())
    assert [(job.id, job.state) for job in kept] == [(waiting, JobState.QUEUED)]
    after = await all_rows(engine)
    assert after[1] == before[1]
    await rebuild(engine)
    assert await all_rows(engine) == after


async def set_back(engine: AsyncEngine, job_id: str, by_ms: int) -> None:
    """Let a job have ended earlier, in its row, its events and its hour's usage."""
    async with engine.begin() as connection:
        await connection.execute(update(JobRow).where(JobRow.id == job_id).values(ended_ms=JobRow.ended_ms - by_ms))
        await connection.execute(update(EventRow).where(EventRow.job_id == job_id).values(at_ms=EventRow.at_ms - by_ms))
        await connection.execute(update(UsageRow).values(hour_ms=UsageRow.hour_ms - by_ms))


async def test_projected_events_leave_redis_after_a_margin(
    farm: Farm, engine: AsyncEngine, projector: Projector, retention: Retention
) -> None:
    await farm.redis.xadd(event_key(0), {"x": "old"}, id="1-1")
    for _ in range(3):
        await farm.submit()
    assert (await retention.run(now_ms=2, **TTLS)).log_entries == 0
    await projector.step()
    assert (await retention.run(now_ms=2, **TTLS)).log_entries == 1


async def test_a_result_that_a_stopped_projector_left_in_redis_gets_its_time_to_live(
    farm: Farm, engine: AsyncEngine, projector: Projector, retention: Retention
) -> None:
    job_id = await durable(farm, engine)
    await projector.step()
    for kind in "jbt":
        await farm.redis.persist(shard_key(0, f"{kind}:{job_id}"))
    forgotten = await retention.run(now_ms=await now_ms(farm), **TTLS)
    assert forgotten.token_logs == 1
    assert await farm.eternal_keys(job_id) == []
    assert (await retention.run(now_ms=await now_ms(farm), **TTLS)).token_logs == 0


async def test_a_dead_job_waits_for_its_operator(farm: Farm, engine: AsyncEngine, retention: Retention) -> None:
    job = make_job(durable=True)
    await Store(engine).accept(job)
    await farm.queue.submit(job)
    for _ in range(3):
        await farm.claim()
        await farm.crash()
    async with engine.begin() as connection:
        await connection.execute(update(DurableJobRow).values(ended_ms=await now_ms(farm)))
    assert (await retention.run(now_ms=await now_ms(farm), **TTLS)).token_logs == 0
    assert await farm.redis.ttl(shard_key(0, f"j:{job.id}")) == -1
