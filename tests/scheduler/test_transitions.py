"""The transition table, the scripts and `apply` say the same: every (event, state) pair is tried on a real job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import product
from typing import Any

import pytest

from scheduler.demand import Demand
from scheduler.events import Event, EventType
from scheduler.failover import reroute
from scheduler.forgotten import tell_end
from scheduler.jobs import TERMINAL, TRANSITIONS, IllegalMove, JobState, apply, replay
from scheduler.lost import LOST
from scheduler.queue import Claimed, shard_key
from tests.scheduler.builders import ENDED, POOL, Farm, make_job

DELAY_MS = 600_000
ENDS = {state: event for event, (_, state) in TRANSITIONS.items() if state in TERMINAL}


async def bring_to(farm: Farm, state: JobState | None) -> Claimed | None:
    """Drive a new job to a state; what its worker held, or None where there never was a job."""
    if state is None:
        return None
    held = await farm.start()
    if state is JobState.QUEUED:
        await farm.queue.release(held.id, held.token, "test")
    elif state is JobState.DELAYED:
        await farm.queue.release(held.id, held.token, "test", DELAY_MS)
    elif state is JobState.DEAD:
        for _ in range(farm.queue.policy.max_crashes):
            await farm.crash()
            await farm.claim()
    elif state is JobState.EXPIRED:
        await farm.finish(held, EventType.EXPIRED)
    elif state is not JobState.RUNNING:
        await farm.finish(held, ENDS[state])
    assert await farm.state(held.id) is state
    return held


async def submit(farm: Farm, held: Claimed | None) -> None:
    await farm.queue.submit(make_job(id=held.id) if held else make_job())


async def schedule(farm: Farm, held: Claimed | None) -> None:
    await farm.queue.submit(make_job(id=held.id, delay_ms=DELAY_MS) if held else make_job(delay_ms=DELAY_MS))


async def claim(farm: Farm, held: Claimed | None) -> None:
    del held
    await farm.claim(rows=4)


async def requeue(farm: Farm, held: Claimed | None) -> None:
    """Another model takes over from one that has failed; a running job's worker crashes; a delayed job becomes due."""
    if held:
        why = {"error_code": "model_failed", "error": "test"}
        await reroute(farm.queue, held.id, "", held.request, why, before=POOL)
    await farm.crash()
    if held and await farm.redis.zscore(shard_key(0, "due"), held.id) is not None:
        await farm.redis.zadd(shard_key(0, "due"), {held.id: 0})
        await farm.worker()
        await farm.queue.claim("w1", POOL, rows=0, nonce="due", idle=True)


async def delay(farm: Farm, held: Claimed | None) -> None:
    if held:
        await farm.queue.release(held.id, held.token, "test", DELAY_MS)


async def cancel(farm: Farm, held: Claimed | None) -> None:
    """Also what a running job's worker then does."""
    job_id = held.id if held else make_job().id
    await farm.queue.cancel(job_id, "test")
    if held:
        await farm.finish(held, EventType.CANCELLED)


async def expire(farm: Farm, held: Claimed | None) -> None:
    job_id = held.id if held else make_job().id
    await farm.redis.zadd(shard_key(0, "ddl"), {job_id: 1})
    await farm.queue.expire(0)
    if held:
        await farm.finish(held, EventType.EXPIRED)


async def die(farm: Farm, held: Claimed | None) -> None:
    """One crash too many."""
    if held:
        snapshot = await farm.queue.snapshot(held.id)
        if snapshot and snapshot["state"] == JobState.RUNNING:
            await farm.redis.hset(shard_key(0, f"j:{held.id}"), "crashes", "2")  # type: ignore[misc]
    await farm.crash()


async def lose(farm: Farm, held: Claimed | None) -> None:
    """As if the record had the job in every state, one after the other."""
    if held:
        for state in JobState:
            await tell_end(farm.queue, held.id, state, EventType.LOST, LOST)


async def fail(farm: Farm, held: Claimed | None) -> None:
    """By its worker, or because its model has failed."""
    if held:
        await farm.finish(held, EventType.FAILED)
    await Demand(farm.queue).turn_away(POOL, "test")


def end(event: EventType) -> Callable[[Farm, Claimed | None], Awaitable[Any]]:
    async def move(farm: Farm, held: Claimed | None) -> None:
        if held:
            await farm.finish(held, event)

    return move


MOVES = {
    EventType.SUBMITTED: submit,
    EventType.SCHEDULED: schedule,
    EventType.CLAIMED: claim,
    EventType.REQUEUED: requeue,
    EventType.DELAYED: delay,
    EventType.FINISHED: end(EventType.FINISHED),
    EventType.FAILED: fail,
    EventType.CANCELLED: cancel,
    EventType.EXPIRED: expire,
    EventType.DIED: die,
    EventType.LOST: lose,
}
DATA: dict[str, Any] = ENDED | {
    "worker": "w1",
    "attempt": 1,
    "crashes": 0,
    **{name: "x" for name in ("tenant", "kind", "model_asked", "model", "route", "request_id")},
    "lane": "normal",
    "rule_version": 0,
    "params": {},
    "durable": False,
    "prompt_tokens": 1,
}


def can_happen(event: EventType, state: JobState | None) -> bool:
    """What the table allows, but for a job that Redis knows: submitting it again is no move, and it is not lost."""
    allowed = state in TRANSITIONS[event][0]
    unknown_only = (EventType.SUBMITTED, EventType.SCHEDULED, EventType.LOST)
    return allowed and not (event in unknown_only and state is not None)


@pytest.mark.parametrize(("event", "state"), list(product(EventType, [None, *JobState])))
async def test_a_move_happens_exactly_where_the_table_allows_it(
    farm: Farm, event: EventType, state: JobState | None
) -> None:
    held = await bring_to(farm, state)
    before = len(await farm.events())
    await MOVES[event](farm, held)
    new = [entry for entry in (await farm.events())[before:] if entry.type is event]
    assert len(new) == (1 if can_happen(event, state) else 0)
    if new:
        assert await farm.state(new[0].job_id) is TRANSITIONS[event][1]
    for job in replay(await farm.events()).values():
        assert await farm.state(job.id) is job.state


@pytest.mark.parametrize(("event", "state"), list(product(EventType, [None, *JobState])))
async def test_apply_allows_what_the_table_allows(farm: Farm, event: EventType, state: JobState | None) -> None:
    held = await bring_to(farm, state)
    job = replay(await farm.events())[held.id] if held else None
    fact = Event("9-1", event, held.id if held else "0-X", 9, DATA)
    if state in TRANSITIONS[event][0]:
        assert apply(job, fact).state is TRANSITIONS[event][1]
    else:
        with pytest.raises(IllegalMove, match=event.value):
            apply(job, fact)


async def test_a_job_that_the_queue_forgot_begins_again_and_keeps_its_first_time(farm: Farm) -> None:
    job = make_job()
    await farm.queue.submit(job)
    await farm.claim()
    events = await farm.events()
    await asyncio.gather(*(farm.redis.delete(shard_key(0, name)) for name in await farm.keys() if name != "ev"))
    await farm.queue.submit(job)
    events = await farm.events()
    again = replay(events)[job.id]
    assert [event.type.value for event in events] == ["submitted", "claimed", "submitted"]
    assert (again.state, again.attempts, again.submitted_ms) == (JobState.QUEUED, 0, events[0].at_ms)
