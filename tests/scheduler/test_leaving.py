"""A job whose client has left goes on for a while, and then only if somebody came back."""

from __future__ import annotations

import pytest

from scheduler.jobs import JobState
from scheduler.queue import shard_key
from tests.scheduler.builders import Farm
from tests.scheduler.conftest import Eventually


async def deadline(farm: Farm, job_id: str) -> float | None:
    at_ms: float | None = await farm.redis.zscore(shard_key(0, "ddl"), job_id)
    return at_ms


@pytest.mark.parametrize("deadline_ms", [0, 600_000])
async def test_a_waiting_job_is_cancelled_after_its_time(farm: Farm, eventually: Eventually, deadline_ms: int) -> None:
    job_id = await farm.submit(deadline_ms=deadline_ms)
    await farm.queue.leave(job_id, 20)
    assert await farm.state(job_id) is JobState.QUEUED
    await eventually(lambda: farm.queue.expire(0))
    assert await farm.told(job_id) == ["submitted", "cancelled"]
    assert (await farm.events(job_id))[-1].data["by"] == "disconnect"
    assert await farm.counts() == {}


async def test_a_running_job_is_told_after_its_time(farm: Farm, eventually: Eventually) -> None:
    held = await farm.start()
    await farm.queue.leave(held.id, 20)
    assert await farm.say(held, 1) == 0
    await eventually(lambda: farm.queue.expire(0))
    assert await farm.say(held, 2) == 1


@pytest.mark.parametrize("deadline_ms", [0, 600_000])
async def test_a_job_that_is_followed_again_goes_on_under_its_old_deadline(farm: Farm, deadline_ms: int) -> None:
    job_id = await farm.submit(deadline_ms=deadline_ms)
    before = await deadline(farm, job_id)
    await farm.queue.leave(job_id, 1000)
    assert await deadline(farm, job_id) != before
    await farm.queue.listen(job_id, "n2")
    assert await deadline(farm, job_id) == before


async def test_a_deadline_before_that_stays_a_deadline(farm: Farm, eventually: Eventually) -> None:
    job_id = await farm.submit(deadline_ms=20)
    await farm.queue.leave(job_id, 600_000)
    await eventually(lambda: farm.queue.expire(0))
    assert await farm.state(job_id) is JobState.EXPIRED


async def test_leaving_what_has_ended_changes_nothing(farm: Farm) -> None:
    held = await farm.start()
    await farm.finish(held)
    await farm.queue.leave(held.id, 10)
    assert await farm.keys("ddl") == []
    await farm.queue.leave("0-01ARZ3NDEKTSV4RRFFQ69G5FAV", 10)
    assert await farm.state(held.id) is JobState.FINISHED
