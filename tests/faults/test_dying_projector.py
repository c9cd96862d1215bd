"""A projector that dies anywhere between reading and committing: SQL has every event once, and the right sums."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from redis.asyncio import Redis
from sqlalchemy import func, select

from scheduler.database import open_database
from scheduler.events import EventType
from scheduler.jobs import JobState, replay
from scheduler.store import Store, job_of_row
from scheduler.tables import EventRow, JobRow, ProjectionErrorRow, UsageRow
from tests.conftest import RedisServer
from tests.scheduler.builders import Farm, make_job

JOBS = 40
MOMENTS = 9
"""Statements and commits of one batch, at the least."""


async def test_a_projector_killed_at_every_statement_counts_each_event_once(
    redis_server: RedisServer, redis: Redis, database_url: str
) -> None:
    """F29: what it writes, its checkpoint and the results of async jobs are one transaction."""
    farm, engine = Farm(redis), open_database(database_url)
    durable = make_job(durable=True)
    await Store(engine).accept(durable)
    await farm.queue.submit(durable)
    (held,) = await farm.claim()
    await farm.say(held, 1)
    await farm.finish(held)
    for number in range(JOBS):
        held = await farm.start()
        await farm.finish(held, EventType.FAILED if number % 3 == 0 else EventType.FINISHED)
    command = [sys.executable, "-m", "tests.faults.dying_projector", redis_server.url, database_url]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=Path(__file__).parents[2], stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert process.returncode == 0
    assert int(told) > 2 * MOMENTS
    async with engine.connect() as connection:
        jobs = [job_of_row(dict(row._mapping)) for row in await connection.execute(select(JobRow.__table__))]
        events = (await connection.execute(select(func.count()).select_from(EventRow))).scalar_one()
        usage = (await connection.execute(select(func.sum(UsageRow.jobs), func.sum(UsageRow.output_tokens)))).one()
        errors = (await connection.execute(select(func.count()).select_from(ProjectionErrorRow))).scalar_one()
    in_redis = await farm.events()
    assert (events, errors) == (len(in_redis), 0)
    assert {job.id: job for job in jobs} == replay(in_redis)
    assert tuple(map(int, usage)) == (JOBS + 1, sum(job.output_tokens for job in jobs))
    kept = await Store(engine).durable_job(durable.id)
    assert kept is not None
    assert kept.frames is not None
    assert [job.state for job in jobs if job.durable] == [JobState.FINISHED]
    await engine.dispose()
