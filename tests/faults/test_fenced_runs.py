"""A worker that lost its jobs and gets them back: what its engine still says of the earlier run is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from scheduler.connections import command_client
from scheduler.queue import JobQueue
from tests.faults.streams import Answer, ask

BODY = ask("Tell me a story.", temperature=1.1, seed=8)


@pytest.fixture(scope="module")
def fenced(start_farm: Callable[..., Any]) -> Any:
    """A farm whose only worker is declared dead while it works."""
    return start_farm()


def declare_dead(redis_url: str) -> list[str]:
    """The reaper takes every worker's jobs away."""

    async def reap() -> list[str]:
        redis = command_client(redis_url)
        queue = JobQueue(redis)
        taken = [job for worker in await queue.live_workers() for job in await queue.reap(0, worker=worker)]
        await redis.aclose()
        return taken

    return asyncio.run(reap())


def test_a_worker_that_gets_its_own_job_back_goes_on_where_it_was(fenced: Any) -> None:
    """F5: the second claim comes while the engine still runs the first one."""
    undisturbed = Answer(fenced.url, BODY).read()
    with Answer(fenced.url, BODY) as answer:
        answer.read(events=10)
        assert declare_dead(fenced.redis.url) == [answer.job_id]
        assert answer.read() == undisturbed
