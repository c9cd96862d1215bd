"""Ten poisonous jobs among three hundred: exactly those end dead."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

from redis.asyncio import Redis

from bench.history import tokens_of
from scheduler.jobs import JobState, replay
from scheduler.requests import Sampling
from tests.conftest import RedisServer
from tests.faults.poisoned_worker import POISON_SEED, TOKENS
from tests.scheduler.builders import Farm

JOBS, EVERY = 300, 30


async def test_ten_poisonous_jobs_among_three_hundred_end_dead_and_nothing_else_does(
    redis_server: RedisServer, redis: Redis
) -> None:
    """F9. A poisonous job dies three times; what shares two of these deaths runs alone and ends well."""
    farm, poisonous = Farm(redis), set()
    for number in range(JOBS):
        is_poison = number % EVERY == 7
        job_id = await farm.submit(max_tokens=TOKENS, sampling=Sampling(seed=POISON_SEED if is_poison else number))
        poisonous |= {job_id} if is_poison else set()
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "tests.faults.poisoned_worker", redis_server.url],
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0
    jobs = replay(await farm.events())
    assert {job.id for job in jobs.values() if job.state is JobState.DEAD} == poisonous
    assert Counter(job.state for job in jobs.values()) == {JobState.DEAD: 10, JobState.FINISHED: 290}
    assert int(told) <= 3 * len(poisonous)
    for job_id in jobs.keys() - poisonous:
        assert tokens_of(await farm.log.read(job_id)) == {0: tuple(range(1, TOKENS + 1))}
    assert await farm.counts() == {}
