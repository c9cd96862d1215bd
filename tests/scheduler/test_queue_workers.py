"""Leases, lost workers and listeners."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from scheduler.events import EventType
from scheduler.jobs import JobState
from scheduler.queue import Heartbeat, shard_key
from scheduler.scripts import QueuePolicy
from scheduler.tokens import EmitCode
from tests.scheduler.builders import ENDED, PATIENT_LEASE_MS, Farm
from tests.scheduler.conftest import Eventually


async def test_registering_begins_a_lease_once(farm: Farm) -> None:
    alive = Heartbeat(True)
    assert await farm.queue.heartbeat("w1", [], register=True) == alive
    assert await farm.queue.heartbeat("w1", [], register=True) == alive
    assert await farm.queue.heartbeat("w1", []) == alive
    assert await farm.queue.live_workers() == ["w1"]


async def test_a_worker_that_never_registered_is_not_alive(farm: Farm) -> None:
    assert await farm.queue.heartbeat("w1", []) == Heartbeat(False)
    assert await farm.queue.live_workers() == []


async def test_a_lease_that_has_ended_is_lost_once_the_reaper_has_seen_it(redis: Redis, eventually: Eventually) -> None:
    """F14, F15: an outage of Redis longer than a lease costs no worker its jobs."""
    farm, short = Farm(redis), Farm(redis, QueuePolicy(lease_ms=10))
    held = await farm.start()
    assert (await short.queue.heartbeat("w1", [held.id])).alive

    async def ended() -> bool:
        return await farm.queue.live_workers() == []

    await eventually(ended)
    assert (await short.queue.heartbeat("w1", [held.id])).alive
    assert await farm.say(held, 1) is EmitCode.OK
    await eventually(ended)
    assert await farm.queue.reap(0) == [held.id]
    assert not (await farm.queue.heartbeat("w1", [held.id])).alive
    assert await farm.say(held, 2) is EmitCode.FENCED
    assert (await farm.queue.heartbeat("w1", [], register=True)).alive


async def test_a_lease_that_the_reaper_has_begun_with_cannot_be_renewed(redis: Redis, eventually: Eventually) -> None:
    farm, short = Farm(redis), Farm(redis, QueuePolicy(lease_ms=10))
    held = [(await farm.start()).id for _ in range(2)]
    assert (await short.queue.heartbeat("w1", held)).alive

    async def reaped() -> list[str]:
        return await farm.queue.reap(0, limit=1)

    await eventually(reaped)
    assert not (await farm.queue.heartbeat("w1", [])).alive
    assert not (await farm.queue.heartbeat("w1", [], register=True)).alive
    assert len(await farm.queue.reap(0, limit=1)) == 1
    assert (await farm.queue.heartbeat("w1", [], register=True)).alive


async def test_what_a_worker_does_not_know_it_holds_goes_back_after_a_grace(
    redis: Redis, eventually: Eventually
) -> None:
    farm = Farm(redis, QueuePolicy(disowned_grace_ms=20))
    lost = await farm.start()
    await farm.finish(await farm.start())

    async def disowned() -> tuple[str, ...]:
        return (await farm.queue.heartbeat("w1", ["0-something-else"])).disowned

    assert await eventually(disowned) == (lost.id,)
    assert await farm.told(lost.id) == ["submitted", "claimed", "requeued"]
    (again,) = await farm.claim()
    assert again.id == lost.id
    snapshot = await farm.queue.snapshot(lost.id)
    assert snapshot is not None
    assert snapshot["crashes"] == "0"


async def test_what_a_worker_holds_is_not_taken_from_it(redis: Redis) -> None:
    farm = Farm(redis, QueuePolicy(disowned_grace_ms=0))
    held = await farm.start()
    assert await farm.queue.heartbeat("w1", [held.id]) == Heartbeat(True)
    fresh = Farm(redis, QueuePolicy(disowned_grace_ms=60_000))
    assert await fresh.queue.heartbeat("w1", []) == Heartbeat(True)


async def test_a_cancelled_job_that_its_worker_does_not_know_ends(redis: Redis, eventually: Eventually) -> None:
    farm = Farm(redis, QueuePolicy(disowned_grace_ms=1))
    held = await farm.start()
    await farm.queue.cancel(held.id, "me")

    async def disowned() -> tuple[str, ...]:
        return (await farm.queue.heartbeat("w1", [])).disowned

    await eventually(disowned)
    assert await farm.state(held.id) is JobState.CANCELLED


async def test_the_first_crash_resumes_the_second_isolates_the_third_kills(farm: Farm) -> None:
    held = await farm.start()
    job_id = held.id
    await farm.say(held, 1)
    assert await farm.crash() == [job_id]
    (held,) = await farm.claim()
    assert (held.solo, held.sequence) == (False, 1)
    assert await farm.crash() == [job_id]
    (held,) = await farm.claim()
    assert held.solo
    assert await farm.crash() == [job_id]
    assert await farm.state(job_id) is JobState.DEAD
    event = (await farm.events(job_id))[-1]
    assert (event.data["crashes"], event.data["output_tokens"], event.data["error_code"]) == (3, 1, "worker_lost")
    assert (await farm.log.read(job_id))[-1].body.data == event.data  # type: ignore[union-attr]
    assert await farm.redis.zrange(shard_key(0, "dlq"), 0, -1) == [job_id.encode()]
    assert await farm.counts() == {}
    assert await farm.queue.body(job_id) is not None


async def test_the_reaper_takes_only_from_workers_whose_lease_has_ended(redis: Redis, eventually: Eventually) -> None:
    short, long = Farm(redis, QueuePolicy(lease_ms=10)), Farm(redis)
    lost, kept = await long.start("short"), await long.start("long")
    assert (await short.queue.heartbeat("short", [lost.id])).alive
    assert await eventually(lambda: long.queue.reap(0)) == [lost.id]
    assert await long.state(kept.id) is JobState.RUNNING
    assert await long.queue.reap(0) == []
    assert await long.queue.leases("") == ["long"]


async def test_a_lease_that_ended_during_an_outage_is_left_alone_for_as_long(
    redis: Redis, eventually: Eventually
) -> None:
    short, long = Farm(redis, QueuePolicy(lease_ms=10)), Farm(redis)
    lost = await long.start()
    assert (await short.queue.heartbeat("w1", [lost.id])).alive

    async def ended() -> bool:
        return await long.queue.live_workers() == []

    await eventually(ended)
    assert await long.queue.reap(0, ended_ms=PATIENT_LEASE_MS) == []
    assert await long.state(lost.id) is JobState.RUNNING
    assert (await short.queue.heartbeat("w1", [lost.id])).alive
    assert await eventually(lambda: long.queue.reap(0, ended_ms=5)) == [lost.id]


async def test_a_worker_known_to_be_dead_loses_its_jobs_now(farm: Farm) -> None:
    held, other = await farm.start("w1"), await farm.start("w2")
    assert await farm.crash("w1") == [held.id]
    assert await farm.state(other.id) is JobState.RUNNING
    assert await farm.queue.leases("") == ["w2"]
    assert await farm.crash("never-was") == []
    assert await farm.queue.leases("") == ["w2"]


async def test_reaping_is_done_in_bounded_steps_and_the_lease_is_over_from_the_first(farm: Farm) -> None:
    for _ in range(10):
        await farm.submit()
    await farm.claim(rows=10)
    assert len(await farm.queue.reap(0, worker="w1", limit=4)) == 4
    assert not (await farm.queue.heartbeat("w1", [])).alive
    assert [len(await farm.queue.reap(0, limit=4)) for _ in range(3)] == [4, 2, 0]
    assert (await farm.queue.depths("demo"))["resume"] == 10
    assert await farm.queue.leases("") == []


async def test_a_crash_carries_out_a_cancel_and_a_deadline(farm: Farm, eventually: Eventually) -> None:
    cancelled, late = await farm.start(), await farm.start(deadline_ms=1)
    await farm.queue.cancel(cancelled.id, "me")
    await eventually(lambda: farm.queue.expire(0))
    await farm.crash()
    assert await farm.state(cancelled.id) is JobState.CANCELLED
    assert await farm.state(late.id) is JobState.EXPIRED
    assert [event.data["crashes"] for event in (await farm.events())[-2:]] == [1, 1]
    assert await farm.counts() == {}


async def test_a_zombie_says_nothing(farm: Farm) -> None:
    zombie = await farm.start()
    await farm.say(zombie, 1)
    await farm.crash()
    assert await farm.say(zombie, 2) == 2
    (held,) = await farm.claim("w2")
    assert await farm.say(zombie, 2) == 2
    assert await farm.say(held, 2) == 0
    assert not await farm.queue.finish(zombie.id, zombie.token, EventType.FINISHED, ENDED)
    assert len(await farm.log.read(zombie.id)) == 2


@pytest.mark.parametrize("add", [True, False])
async def test_listening_names_a_node_once_or_not_at_all(farm: Farm, add: bool) -> None:
    job_id = await farm.submit(node="a")
    for _ in range(2):
        assert await farm.queue.listen(job_id, "b") is JobState.QUEUED
    if not add:
        await farm.queue.listen(job_id, "a", add=False)
    snapshot = await farm.queue.snapshot(job_id)
    assert snapshot is not None
    assert snapshot["rt"] == ("a,b" if add else "b")
