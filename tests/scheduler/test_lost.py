"""Records of jobs that nobody has any more get an end; those that somebody has are left alone."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.errors import QueueUnavailable
from scheduler.jobs import Job, JobState
from scheduler.lost import Lost
from scheduler.projector import Projector
from scheduler.queue import NewJob
from scheduler.store import Store
from tests.conftest import RedisServer
from tests.scheduler.builders import Farm, make_job


class Records:
    """A record that is up to date, and what looks after it."""

    def __init__(self, farm: Farm, engine: AsyncEngine) -> None:
        self.farm = farm
        self.store = Store(engine)
        self._projector = Projector(farm.redis, engine, farm.queue, 0)

    def lost(self) -> Lost:
        """One scheduler's."""
        return Lost(self.farm.queue, self.store)

    async def job(self, job_id: str) -> Job:
        """A job's record."""
        while await self._projector.step():
            pass
        job = await self.store.job(job_id)
        assert job is not None
        return job


async def forgotten_job(records: Records, **parts: Any) -> NewJob:
    """A job in the record that Redis has lost with its last second (the record was faster)."""
    job = make_job(**parts)
    await records.farm.queue.submit(job)
    await records.farm.claim()
    assert (await records.job(job.id)).state is JobState.RUNNING
    await records.farm.redis.flushdb()
    return job


@pytest.fixture
def records(farm: Farm, engine: AsyncEngine) -> Records:
    """Of an empty farm."""
    return Records(farm, engine)


async def test_a_job_that_nobody_has_ends_with_a_reason_at_the_second_look(records: Records) -> None:
    job, lost = await forgotten_job(records), records.lost()
    assert await lost.look() == []
    assert (await records.job(job.id)).state is JobState.RUNNING
    assert await lost.look() == [job.id]
    ended = await records.job(job.id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "job_lost")
    assert ended.error
    assert ended.ended_ms is not None
    assert await lost.look() == []


async def test_a_job_that_its_api_node_gives_back_in_between_goes_on(records: Records) -> None:
    job, lost = await forgotten_job(records), records.lost()
    await lost.look()
    await records.farm.queue.submit(job)
    assert await lost.look() == []
    await records.farm.redis.flushdb()
    assert await lost.look() == []  # from the beginning


async def test_an_async_job_is_the_relays_and_a_known_one_nobodys(records: Records) -> None:
    await forgotten_job(records, durable=True)
    await records.farm.submit()
    lost = records.lost()
    assert [await lost.look() for _ in range(3)] == [[], [], []]


async def test_two_schedulers_end_it_once(records: Records) -> None:
    job, (one, other) = await forgotten_job(records), (records.lost(), records.lost())
    await one.look()
    await other.look()
    assert await one.look() == [job.id]
    assert await other.look() == []
    assert await records.farm.told(job.id) == ["lost"]


async def test_a_look_while_redis_is_away_counts_for_nothing(
    own_redis_server: RedisServer, own_redis: object, engine: AsyncEngine
) -> None:
    records = Records(Farm(own_redis), engine)  # type: ignore[arg-type]
    await forgotten_job(records)
    lost = records.lost()
    own_redis_server.kill()
    with pytest.raises(QueueUnavailable):
        await lost.look()
    own_redis_server.start()
    assert await lost.look() == []


async def test_many_lost_jobs_are_found_page_by_page(records: Records) -> None:
    ids = [await records.farm.submit() for _ in range(7)]
    await records.job(ids[-1])
    await records.farm.redis.flushdb()
    lost = Lost(records.farm.queue, records.store, page=3)
    await lost.look()
    assert sorted(await lost.look()) == sorted(ids)
