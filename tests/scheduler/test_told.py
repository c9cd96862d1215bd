"""An end that a client was told gets into the record, whatever Redis forgets; one that is known is not told twice."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.errors import QueueUnavailable
from scheduler.frames import End
from scheduler.jobs import Job, JobState
from scheduler.projector import Projector
from scheduler.queue import NewJob
from scheduler.store import Store
from scheduler.told import Told
from tests.conftest import RedisServer
from tests.scheduler.builders import ENDED, Farm, make_job

FINISHED = End(JobState.FINISHED, ENDED)


class Records:
    """An API node that has told ends, and the record."""

    def __init__(self, farm: Farm, engine: AsyncEngine) -> None:
        self.farm = farm
        self.store = Store(engine)
        self.told = Told(farm.queue, self.store, settled_s=0)
        self._projector = Projector(farm.redis, engine, farm.queue, 0)

    async def project(self) -> None:
        """Bring the record up to date."""
        while await self._projector.step():
            continue

    async def job(self, job_id: str) -> Job | None:
        """A job's row, brought up to date."""
        await self.project()
        return await self.store.job(job_id)

    async def answer(self, *, recorded: bool = False) -> NewJob:
        """A job that ends for its client, `recorded` until it runs."""
        job = make_job()
        await self.farm.queue.submit(job)
        (held,) = await self.farm.claim()
        if recorded:
            await self.project()
        assert await self.farm.finish(held)
        self.told.hear(job, FINISHED)
        return job


@pytest.fixture
def records(farm: Farm, engine: AsyncEngine) -> Records:
    """Of an empty farm."""
    return Records(farm, engine)


async def test_a_job_that_was_lost_whole_is_told_whole(records: Records) -> None:
    job = await records.answer()
    await records.farm.redis.flushdb()
    assert await records.told.look() == [job.id]
    ended = await records.job(job.id)
    assert ended is not None
    assert (ended.state, ended.output_tokens, ended.tenant) == (JobState.FINISHED, ENDED["output_tokens"], job.tenant)
    assert await records.told.look() == []


async def test_a_job_whose_beginning_is_recorded_keeps_what_is_known_of_it(records: Records) -> None:
    job = await records.answer(recorded=True)
    await records.farm.redis.flushdb()
    assert await records.told.look() == [job.id]
    ended = await records.job(job.id)
    assert ended is not None
    assert (ended.state, ended.worker, ended.attempts) == (JobState.FINISHED, "w1", 1)


async def test_what_the_queue_or_the_record_knows_is_not_told_again(records: Records) -> None:
    known = await records.answer()
    assert await records.told.look() == []
    recorded = await records.answer()
    await records.project()
    await records.farm.redis.flushdb()
    assert await records.told.look() == []
    assert await records.farm.events() == []
    for job in (known, recorded):
        ended = await records.job(job.id)
        assert ended is not None
        assert ended.state is JobState.FINISHED


async def test_two_nodes_tell_it_once(records: Records) -> None:
    job = await records.answer()
    other = Told(records.farm.queue, records.store, settled_s=0)
    other.hear(job, FINISHED)
    await records.farm.redis.flushdb()
    assert [await records.told.look(), await other.look()] == [[job.id], []]
    assert await records.farm.told(job.id) == ["submitted", "finished"]


async def test_what_is_on_redis_disk_only_after_a_while_is_looked_for_after_it(records: Records) -> None:
    patient = Told(records.farm.queue, records.store, settled_s=3600)
    patient.hear(make_job(), FINISHED)
    assert await patient.look() == []


async def test_a_look_while_redis_is_away_is_made_again(
    own_redis_server: RedisServer, own_redis: object, engine: AsyncEngine
) -> None:
    records = Records(Farm(own_redis), engine)  # type: ignore[arg-type]
    job = await records.answer()
    await records.farm.redis.flushdb()
    own_redis_server.kill()
    with pytest.raises(QueueUnavailable):
        await records.told.look()
    own_redis_server.start()
    assert await records.told.look() == [job.id]
