"""A death before and after every call of Redis on a job's way: each job ends once, each token is said once."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from redis.asyncio import Redis

from bench.history import History, tokens_of, violations
from scheduler.jobs import JobState, replay
from tests.conftest import RedisServer
from tests.faults.dying_worker import JOBS, TOKENS
from tests.scheduler.builders import Farm

CALLS = 2 * JOBS + 2
"""At the least: to submit and to end each job, to begin a lease, to claim."""


async def test_a_death_at_any_call_of_redis_loses_and_doubles_nothing(redis_server: RedisServer, redis: Redis) -> None:
    """F55, and F2 to F4, F11 and F12: a call that was carried out and whose reply nobody got."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "tests.faults.dying_worker", redis_server.url],
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0
    deaths = int(told)
    assert deaths >= 2 * (CALLS + JOBS * TOKENS)
    farm = Farm(redis)
    events = await farm.events()
    jobs = replay(events)
    logs = {job_id: await farm.log.read(job_id) for job_id in jobs}
    assert len(jobs) == JOBS * (deaths + 1)
    assert {job.state for job in jobs.values()} == {JobState.FINISHED}
    assert {tuple(tokens_of(log)[0]) for log in logs.values()} == {tuple(range(1, TOKENS + 1))}
    eternal = [key for job_id in jobs for key in await farm.eternal_keys(job_id)]
    history = History(
        stories=[], expected={}, jobs=jobs, events=events, logs=logs, counters=await farm.counts(), eternal_keys=eternal
    )
    assert violations(history) == []
