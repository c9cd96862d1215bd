"""Kept inputs: committed with their jobs, chained to conversations, one tenant's own, forgotten with their results."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.frames import Chunk, End, Frame, FrameId
from scheduler.jobs import JobState
from scheduler.projector import Projector
from scheduler.retention import Retention
from scheduler.store import KeptInput, Store, encode_frames
from scheduler.tables import DurableJobRow
from scheduler.turns import Turns
from tests.scheduler.builders import Farm, make_job


@pytest.fixture
def turns(engine: AsyncEngine) -> Turns:
    """On an empty database."""
    return Turns(engine)


async def keep(engine: AsyncEngine, text: bytes, previous: str | None = None, **job: Any) -> str:
    """A kept input, and the id of its job."""
    return await Store(engine).accept(make_job(durable=True, **job), KeptInput(text, previous))


async def answer(engine: AsyncEngine, job_id: str) -> None:
    """Put an answer beside an input, as the projector does."""
    frames = [
        Frame(job_id, FrameId(1, 1), (Chunk(0, (5,), "x"),)),
        Frame(job_id, FrameId(1, 2), End(JobState.FINISHED)),
    ]
    values = {"ended_ms": 1, "result": encode_frames(frames)}
    async with engine.begin() as connection:
        await connection.execute(update(DurableJobRow).where(DurableJobRow.id == job_id).values(**values))


async def test_a_conversation_is_told_from_its_beginning(engine: AsyncEngine, turns: Turns) -> None:
    first = await keep(engine, b"1")
    await answer(engine, first)
    second = await keep(engine, b"2", first)
    branch = await keep(engine, b"3", first)
    assert [turn.input for turn in await turns.conversation("default", second)] == [b"1", b"2"]
    assert [turn.input for turn in await turns.conversation("default", branch)] == [b"1", b"3"]
    told = (await turns.conversation("default", second))[0].job
    assert told.request is not None
    assert told.frames is not None
    assert len(told.frames) == 2


async def test_another_tenants_turns_do_not_exist(engine: AsyncEngine, turns: Turns) -> None:
    own = await keep(engine, b"1", tenant="a")
    foreign = await keep(engine, b"2", own, tenant="b")
    assert await turns.get("b", own) is None
    assert not await turns.forget("b", own)
    assert [turn.input for turn in await turns.conversation("b", foreign)] == [b"2"]
    assert [turn.input for turn in await turns.conversation("a", own)] == [b"1"]


async def test_what_is_forgotten_takes_its_answer_along(engine: AsyncEngine, turns: Turns) -> None:
    job_id = await keep(engine, b"1")
    await answer(engine, job_id)
    assert await turns.forget("default", job_id)
    assert not await turns.forget("default", job_id)
    assert await turns.get("default", job_id) is None
    job = await Store(engine).durable_job(job_id)
    assert job is not None
    assert (job.request, job.frames) == (None, None)


async def test_inputs_go_with_their_results(farm: Farm, engine: AsyncEngine, turns: Turns) -> None:
    old, waiting = await keep(engine, b"1"), await keep(engine, b"2")
    await answer(engine, old)
    retention = Retention(farm.redis, engine, farm.queue, [Projector(farm.redis, engine, farm.queue, 0)])
    ttls = {"result_ttl_ms": 10, "record_ttl_ms": 10**9, "trim_margin_ms": 10**9}
    assert (await retention.run(now_ms=1000, **ttls)).results == 1
    assert await turns.get("default", old) is None
    assert await turns.get("default", waiting) is not None
