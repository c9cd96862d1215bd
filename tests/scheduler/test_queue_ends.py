"""How a job ends or goes back: finish, release, cancel, deadlines; and what is left of it afterwards."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from scheduler.errors import LogShortened
from scheduler.events import EventType
from scheduler.frames import End
from scheduler.jobs import JobState
from scheduler.queue import shard_key
from scheduler.scripts import QueuePolicy
from tests.scheduler.builders import ENDED, Farm
from tests.scheduler.conftest import Eventually


async def test_finishing_writes_one_event_and_one_last_frame(farm: Farm) -> None:
    held = await farm.start()
    await farm.say(held, 1)
    assert await farm.finish(held)
    assert await farm.told(held.id) == ["submitted", "claimed", "finished"]
    frames = await farm.log.read(held.id)
    assert [frame.id.sequence for frame in frames] == [1, 2]
    assert frames[1].body == End(JobState.FINISHED, ENDED)
    assert await farm.counts() == {}


async def test_a_job_whose_last_frames_redis_lost_does_not_end_before_they_are_back(farm: Farm) -> None:
    """F16: an End behind a shortened log would make the short answer final."""
    held = await farm.start()
    await farm.say(held, 1)
    with pytest.raises(LogShortened):
        await farm.queue.finish(held.id, held.token, EventType.FINISHED, ENDED, sequence=2)
    assert await farm.state(held.id) is JobState.RUNNING
    await farm.say(held, 2)
    assert await farm.queue.finish(held.id, held.token, EventType.FINISHED, ENDED, sequence=2)


async def test_finishing_twice_is_finishing_once(farm: Farm) -> None:
    held = await farm.start()
    assert [await farm.finish(held) for _ in range(3)] == [True] * 3
    assert await farm.finish(held, EventType.FAILED)
    assert await farm.told(held.id) == ["submitted", "claimed", "finished"]
    assert len(await farm.log.read(held.id)) == 1
    assert await farm.counts() == {}


async def test_an_old_token_ends_nothing(farm: Farm) -> None:
    old = await farm.start()
    await farm.crash()
    (new,) = await farm.claim("w2")
    assert not await farm.finish(old)
    assert not await farm.queue.release(old.id, old.token, "drain")
    assert await farm.state(old.id) is JobState.RUNNING
    assert await farm.finish(new)
    assert not await farm.finish(old)


async def test_an_empty_token_is_nobodys(farm: Farm) -> None:
    job_id = await farm.submit()
    assert not await farm.queue.finish(job_id, "", EventType.CANCELLED, {})
    assert not await farm.queue.release(job_id, "", "drain")
    assert await farm.state(job_id) is JobState.QUEUED


@pytest.mark.parametrize("event", [EventType.FINISHED, EventType.FAILED, EventType.CANCELLED, EventType.EXPIRED])
async def test_nothing_of_an_ended_job_is_kept_for_ever(farm: Farm, event: EventType) -> None:
    held = await farm.start(deadline_ms=60_000)
    await farm.say(held, 1)
    await farm.finish(held, event)
    assert await farm.eternal_keys(held.id) == []
    assert await farm.keys("ddl") == []
    assert await farm.keys("wj:*") == []
    assert await farm.counts() == {}


async def test_a_durable_job_is_kept_until_the_record_has_it(farm: Farm) -> None:
    held = await farm.start(durable=True)
    await farm.say(held, 1)
    await farm.finish(held)
    assert await farm.eternal_keys(held.id) == [f"{kind}:{held.id}" for kind in "bjt"]
    await farm.queue.let_expire([held.id])
    assert await farm.eternal_keys(held.id) == []


async def test_a_released_job_is_resumed_without_a_crash_mark(farm: Farm) -> None:
    held = await farm.start()
    await farm.say(held, 1)
    assert await farm.queue.release(held.id, held.token, "drain")
    assert not await farm.queue.release(held.id, held.token, "drain")
    (again,) = await farm.claim("w2")
    snapshot = await farm.queue.snapshot(held.id)
    assert snapshot is not None
    assert (again.id, again.sequence, again.attempt, snapshot["crashes"]) == (held.id, 1, 2, "0")
    assert (await farm.events(held.id))[2].data == {"why": "drain", "crashes": 0}


@pytest.mark.parametrize("before", [JobState.QUEUED, JobState.DELAYED])
async def test_a_waiting_job_is_cancelled_at_once(farm: Farm, before: JobState) -> None:
    held = await farm.start()
    await farm.say(held, 1)
    await farm.queue.release(held.id, held.token, "x", 600_000 if before is JobState.DELAYED else 0)
    assert await farm.queue.cancel(held.id, "me") is before
    assert await farm.queue.cancel(held.id, "me") is JobState.CANCELLED
    events = await farm.events(held.id)
    assert events[-1].data == {"by": "me", "output_tokens": 1, "crashes": 0}
    assert [event.type for event in events].count(EventType.CANCELLED) == 1
    assert (await farm.log.read(held.id))[-1].body == End(JobState.CANCELLED, events[-1].data)
    assert await farm.eternal_keys(held.id) == []
    assert await farm.counts() == {}


async def test_cancelling_leaves_no_backlog_behind(farm: Farm) -> None:
    for job_id in [await farm.submit(tenant=name) for name in "abc"]:
        await farm.queue.cancel(job_id, "me")
    assert await farm.keys("q:*") == []
    assert await farm.keys("wait:*") == []


async def test_a_running_job_is_told_and_its_worker_ends_it(farm: Farm) -> None:
    held = await farm.start()
    assert await farm.say(held, 1) == 0
    assert await farm.queue.cancel(held.id, "me") is JobState.RUNNING
    assert (await farm.queue.heartbeat("w1", [held.id])).cancelled == (held.id,)
    assert await farm.say(held, 2) == 1
    assert await farm.finish(held, EventType.CANCELLED)
    assert await farm.told(held.id) == ["submitted", "claimed", "cancelled"]


@pytest.mark.parametrize("delay_ms", [0, 1000])
async def test_a_cancelled_job_does_not_go_back_to_the_queue(farm: Farm, delay_ms: int) -> None:
    held = await farm.start()
    await farm.queue.cancel(held.id, "me")
    assert await farm.queue.release(held.id, held.token, "drain", delay_ms)
    assert await farm.state(held.id) is JobState.CANCELLED
    assert await farm.counts() == {}


async def test_cancelling_an_ended_job_does_nothing(farm: Farm) -> None:
    held = await farm.start()
    await farm.finish(held)
    assert await farm.queue.cancel(held.id, "me") is JobState.FINISHED
    assert await farm.told(held.id) == ["submitted", "claimed", "finished"]


async def test_a_waiting_job_past_its_deadline_expires(farm: Farm, eventually: Eventually) -> None:
    job_id, patient = await farm.submit(deadline_ms=1), await farm.submit(deadline_ms=600_000)
    assert await eventually(lambda: farm.queue.expire(0)) == 1
    assert await farm.state(job_id) is JobState.EXPIRED
    assert await farm.state(patient) is JobState.QUEUED
    (event,) = [event for event in await farm.events(job_id) if event.type is EventType.EXPIRED]
    assert event.data["error_code"] == "deadline_exceeded"
    assert await farm.eternal_keys(patient) != []
    assert [key for key in await farm.eternal_keys(job_id) if job_id in key] == []


async def test_a_delayed_job_past_its_deadline_expires(farm: Farm, eventually: Eventually) -> None:
    held = await farm.start(deadline_ms=50)
    await farm.queue.release(held.id, held.token, "retry", 600_000)
    await eventually(lambda: farm.queue.expire(0))
    assert await farm.told(held.id) == ["submitted", "claimed", "delayed", "expired"]
    assert await farm.keys("due") == []


async def test_a_running_job_past_its_deadline_is_told(farm: Farm, eventually: Eventually) -> None:
    held = await farm.start(deadline_ms=1)
    await eventually(lambda: farm.queue.expire(0))
    assert (await farm.queue.heartbeat("w1", [held.id])).expired == (held.id,)
    assert await farm.say(held, 1) == 5
    assert await farm.finish(held, EventType.EXPIRED)
    assert await farm.state(held.id) is JobState.EXPIRED


async def test_a_deadline_does_not_undo_a_cancel(farm: Farm, eventually: Eventually) -> None:
    held = await farm.start(deadline_ms=1)
    await farm.queue.cancel(held.id, "me")
    await eventually(lambda: farm.queue.expire(0))
    assert await farm.say(held, 1) == 1


async def test_expiring_is_done_in_bounded_steps(farm: Farm, eventually: Eventually) -> None:
    for _ in range(10):
        await farm.submit(deadline_ms=1)
    ids = [event.job_id for event in await farm.events()]
    touched = [await eventually(lambda: farm.queue.expire(0, 4))]

    async def all_expired() -> bool:
        touched.append(await farm.queue.expire(0, 4))
        return {await farm.state(job_id) for job_id in ids} == {JobState.EXPIRED}

    await eventually(all_expired)
    assert sum(touched) == 10
    assert max(touched) <= 4


async def test_the_idempotency_key_outlives_the_job(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(idempotency_ttl_ms=5000))
    job_id = await farm.submit(idempotency_key="k", body_hash="h")
    await farm.queue.cancel(job_id, "me")
    assert await farm.submit(idempotency_key="k", body_hash="h") == job_id
    assert 0 < await redis.pttl(shard_key(0, "idem:default:k")) <= 5000
