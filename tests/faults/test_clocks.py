"""Jumps of Redis' clock, the only one that counts, cost work that is done twice; other clocks may be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
from redis.asyncio import Redis

from scheduler.frames import Chunk, FrameId
from scheduler.jobs import JobState, replay
from scheduler.queue import shard_key
from scheduler.tokens import Emission, EmitCode
from tests.farm.streams import Answer, ask, post
from tests.faults.patching import patched
from tests.scheduler.builders import PATIENT_LEASE_MS, Farm

JUMP_MS = 60_000
HOUR_S = 3600
BODY = ask("Tell me a story.", temperature=1.1, seed=8)


async def jump(redis: Redis, ms: int) -> None:
    """Redis' clock jumps by so much: every moment that it has noted lies so much further back."""
    for name in ("wl", "due", "ddl"):
        key = shard_key(0, name)
        for member, at_ms in await redis.zrange(key, 0, -1, withscores=True):
            await redis.zadd(key, {member: at_ms - ms})


async def test_a_clock_that_jumps_ahead_ends_leases_and_no_job_twice(redis: Redis) -> None:
    """F42: the lease of a worker that is alive seems over; what it goes on to say is refused."""
    farm = Farm(redis)
    held = await farm.start("w1", deadline_ms=PATIENT_LEASE_MS + 10 * JUMP_MS)
    assert await farm.say(held, 1) is EmitCode.OK
    await jump(redis, PATIENT_LEASE_MS + JUMP_MS)
    assert await farm.queue.reap(0) == [held.id]
    (again,) = await farm.claim("w2")
    assert await farm.say(held, 2) is EmitCode.FENCED
    assert await farm.say(again, 2) is EmitCode.OK
    assert not await farm.finish(held)
    assert await farm.finish(again)
    assert await farm.told(held.id) == ["submitted", "claimed", "requeued", "claimed", "finished"]
    assert [frame.id.sequence for frame in await farm.log.read(held.id)] == [1, 2, 3]


async def test_a_clock_that_jumps_back_leaves_all_ids_in_order(redis: Redis) -> None:
    """F42: events and frames of a time that has not come yet; those that follow stand behind them all the same."""
    farm = Farm(redis)
    held = await farm.start("w1")
    seconds, _ = await redis.time()
    later_ms = seconds * 1000 + JUMP_MS
    await redis.hset(shard_key(0, f"j:{held.id}"), "gen", later_ms)  # type: ignore[misc]
    frame = Emission(held.id, held.token, FrameId(later_ms, 1), (Chunk(0, (1,), "a"),))
    assert await farm.log.emit([frame]) == [EmitCode.OK]
    await redis.execute_command("XSETID", shard_key(0, "ev"), f"{later_ms}-7")  # type: ignore[no-untyped-call]
    await farm.crash("w1")
    (again,) = await farm.claim("w2")
    assert again.generation >= later_ms
    assert await farm.say(again, 2) is EmitCode.OK
    assert await farm.finish(again)
    events = await farm.events()
    assert [event.type.value for event in events] == ["submitted", "claimed", "requeued", "claimed", "finished"]
    assert events[2].id.startswith(f"{later_ms}-")
    assert replay(events)[held.id].state is JobState.FINISHED
    ids = [entry.id for entry in await farm.log.read(held.id)]
    assert ids == sorted(ids, key=lambda frame_id: (frame_id.generation, frame_id.sequence))
    assert [frame_id.sequence for frame_id in ids] == [1, 2, 3]


def wrong_clock(offset_s: int) -> dict[str, str]:
    """The environment of a process whose own clock is off."""
    return patched("wrong_clock", CLOCK_OFFSET_S=str(offset_s))


def test_processes_whose_clocks_are_hours_apart_work_together(
    start_farm: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """F41: leases end, jobs resume and events stand in order, because each of these has one clock: Redis' or SQL's."""
    own = {"workers": wrong_clock(HOUR_S), "api": wrong_clock(-HOUR_S), "scheduler": wrong_clock(HOUR_S)}
    farm = start_farm(own=own, lease_s="5")
    undisturbed = Answer(farm.url, BODY).read()
    began_ms = redis_ms(farm)
    answer = Answer(farm.url, BODY)
    answer.read(events=5)
    accepted = post(f"{farm.url}/v1/chat/completions", BODY | {"stream": False}, Prefer="respond-async")
    assert accepted.status_code == 202
    for process in psutil.Process(farm.worker.process.pid).children(recursive=True):
        process.kill()
    farm.worker.kill()  # the machine is gone: only the end of its lease tells
    farm.start("workers", **wrong_clock(-HOUR_S))
    assert answer.read() == undisturbed
    job = eventually(lambda: (found := farm.get(accepted.headers["location"]))["state"] == "finished" and found)
    assert job["result"]["choices"][0]["message"]["content"] == undisturbed
    query = f"SELECT type, at_ms FROM job_events WHERE job_id = '{answer.job_id}' ORDER BY ms, seq"
    events = eventually(lambda: (rows := farm.query(query))[-1:] and rows[-1]["type"] == "finished" and rows)
    assert [event["type"] for event in events][:2] == ["submitted", "claimed"]
    assert "requeued" in {event["type"] for event in events}
    times_ms = [began_ms, *(event["at_ms"] for event in events), redis_ms(farm)]
    assert times_ms == sorted(times_ms)
    farm.stop()


def redis_ms(farm: Any) -> int:
    """What the time is for Redis."""
    seconds, micros = farm.redis.ask("TIME")
    return int(seconds) * 1000 + int(micros) // 1000
