"""Later and again: scheduled jobs, failures that may pass, and what is dead in the end."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from scheduler.dead_letters import DeadLetters
from scheduler.events import EventType
from scheduler.frames import End
from scheduler.jobs import JobState, replay
from scheduler.queue import Claimed, shard_key
from scheduler.scripts import QueuePolicy
from tests.scheduler.builders import POOL, Farm
from tests.scheduler.conftest import Eventually

FACTS = {"error_code": "engine_error", "error": "not finite", "output_tokens": 1}


async def retry(farm: Farm, held: Claimed) -> str:
    return await farm.queue.retry(held.id, held.token, "engine_error", FACTS)


async def make_due(farm: Farm, job_id: str) -> None:
    await farm.redis.zadd(shard_key(0, "due"), {job_id: 1})


async def test_a_scheduled_job_waits_for_its_time(farm: Farm) -> None:
    job_id = await farm.submit(delay_ms=600_000)
    assert await farm.claim() == []
    assert await farm.state(job_id) is JobState.DELAYED
    assert await farm.counts() == {"t:default": 1, "T:default": 10}
    due_ms, (scheduled,) = await farm.queue.due_ms(job_id), await farm.events()
    assert due_ms == scheduled.at_ms + 600_000
    await make_due(farm, job_id)
    (held,) = await farm.claim()
    assert held.id == job_id
    assert await farm.told(job_id) == ["scheduled", "requeued", "claimed"]
    assert replay(await farm.events())[job_id].state is JobState.RUNNING


async def test_a_scheduled_job_begins_by_itself(farm: Farm, eventually: Eventually) -> None:
    job_id = await farm.submit(delay_ms=30)
    (held,) = await eventually(farm.claim)
    assert held.id == job_id


@pytest.mark.parametrize("move", ["cancel", "expire"])
async def test_a_scheduled_job_can_end_before_its_time(farm: Farm, eventually: Eventually, move: str) -> None:
    job_id = await farm.submit(delay_ms=600_000, deadline_ms=1 if move == "expire" else 0)
    if move == "cancel":
        assert await farm.queue.cancel(job_id, "me") is JobState.DELAYED
    else:
        await eventually(lambda: farm.queue.expire(0))
    assert await farm.state(job_id) in (JobState.CANCELLED, JobState.EXPIRED)
    assert await farm.keys("due") == []
    assert await farm.counts() == {}


async def test_a_failure_that_may_pass_goes_on_later_where_it_stopped(farm: Farm) -> None:
    held = await farm.start()
    await farm.say(held, 1)
    wait_ms = int(await retry(farm, held))
    delayed = (await farm.events(held.id))[-1]
    assert delayed.data == {
        "why": "engine_error",
        "crashes": 0,
        "retries": 1,
        "wait_ms": wait_ms,
        "error_code": "engine_error",
        "error": "not finite",
    }
    assert await farm.queue.due_ms(held.id) == delayed.at_ms + wait_ms
    assert await farm.say(held, 2) == 2
    await make_due(farm, held.id)
    (again,) = await farm.claim("w2")
    assert (again.sequence, again.attempt) == (1, 2)
    assert again.generation > held.generation
    assert await farm.finish(again)
    assert await farm.counts() == {}


async def test_waits_are_drawn_from_a_ceiling_that_doubles_up_to_a_longest(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(max_retries=8, retry_base_ms=1000, retry_longest_ms=5000))
    waits: dict[int, list[int]] = {}
    for _ in range(12):
        held = await farm.start()
        for attempt in range(5):
            waits.setdefault(attempt, []).append(int(await retry(farm, held)))
            await make_due(farm, held.id)
            (held,) = await farm.claim()
        await farm.finish(held)
    ceilings = (1000, 2000, 4000, 5000, 5000)
    shares = [wait / ceiling for attempt, ceiling in enumerate(ceilings) for wait in waits[attempt]]
    assert 0 <= min(shares) < 1 / 4 < 3 / 4 < max(shares) < 1


async def test_after_its_last_retry_a_job_is_dead(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(max_retries=1))
    held = await farm.start()
    await retry(farm, held)
    await make_due(farm, held.id)
    (again,) = await farm.claim()
    assert await retry(farm, again) == "dead"
    assert await retry(farm, again) == "fenced"
    (*_, died) = await farm.events(held.id)
    assert (died.type, died.data) == (EventType.DIED, FACTS)
    assert (await farm.log.read(held.id))[-1].body == End(JobState.DEAD, FACTS)
    assert await farm.queue.body(held.id) is not None


async def test_what_was_asked_meanwhile_comes_before_a_retry(farm: Farm) -> None:
    held = await farm.start()
    await farm.queue.cancel(held.id, "me")
    assert await retry(farm, held) == "ended"
    assert await farm.state(held.id) is JobState.CANCELLED


async def test_an_old_token_retries_nothing(farm: Farm) -> None:
    old = await farm.start()
    await farm.crash()
    await farm.claim("w2")
    assert await retry(farm, old) == "fenced"
    assert await farm.state(old.id) is JobState.RUNNING


async def test_a_deadline_holds_for_all_attempts_together(farm: Farm, eventually: Eventually) -> None:
    held = await farm.start(deadline_ms=50)
    await retry(farm, held)
    await eventually(lambda: farm.queue.expire(0))
    assert await farm.told(held.id) == ["submitted", "claimed", "delayed", "expired"]


async def dead_job(farm: Farm, **parts: str) -> str:
    """Crash after crash."""
    held = await farm.start(**parts)
    for _ in range(farm.queue.policy.max_crashes):
        await farm.crash()
        await farm.claim()
    assert await farm.state(held.id) is JobState.DEAD
    return held.id


async def test_dead_letters_are_listed_by_tenant_the_longest_dead_first(farm: Farm) -> None:
    letters = DeadLetters(farm.queue)
    ids = [await dead_job(farm, tenant=tenant) for tenant in ("a", "b", "a")]
    assert await letters.ids("a", 9) == [ids[0], ids[2]]
    assert await letters.ids("a", 1) == ids[:1]
    assert await letters.ids("c", 9) == []


async def test_a_discarded_letter_is_kept_no_longer_than_any_job(farm: Farm) -> None:
    letters, job_id = DeadLetters(farm.queue), await dead_job(farm)
    assert await farm.eternal_keys(job_id) != []
    assert await asyncio.gather(*(letters.discard(job_id) for _ in range(3))) == [True, False, False]
    assert await farm.eternal_keys(job_id) == []
    assert await letters.ids("default", 9) == []
    assert await farm.state(job_id) is JobState.DEAD


async def test_only_dead_jobs_can_be_discarded(farm: Farm) -> None:
    job_id = await farm.submit()
    assert not await DeadLetters(farm.queue).discard(job_id)
    assert await farm.redis.ttl(shard_key(0, f"b:{job_id}")) == -1
    assert (await farm.queue.depths(POOL))["normal"] == 1
