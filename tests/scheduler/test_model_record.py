"""What node agents decided about models is in SQL, once, in order, for as long as the record is kept."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler import model_record
from scheduler.checkpoints import CheckpointMoved
from scheduler.model_events import KEY, ModelEvent, ModelEvents
from scheduler.model_record import ModelEventFilter, ModelRecord, recorded_model_events
from scheduler.tables import ProjectionErrorRow


@pytest.fixture
def record(redis: Redis, engine: AsyncEngine) -> ModelRecord:
    """The projection of an empty log."""
    return ModelRecord(redis, engine)


async def tell(redis: Redis, *models: str, event: ModelEvent = ModelEvent.LOADED) -> None:
    for model in models:
        await ModelEvents(redis).append("agent-1", event, model, {"load_s": 1.5})


async def recorded(engine: AsyncEngine, **wanted: str) -> list[str]:
    """Models, oldest first."""
    rows = await recorded_model_events(engine, ModelEventFilter(**wanted))  # type: ignore[arg-type]
    return [row["model"] for row in reversed(rows)]


async def test_every_event_is_a_row_with_its_facts_and_no_event_is_two(
    redis: Redis, engine: AsyncEngine, record: ModelRecord
) -> None:
    await tell(redis, "a", "b")
    assert (await record.step(), await record.step()) == (2, 0)
    await tell(redis, "c")
    assert await record.step() == 1
    (row, *_) = await recorded_model_events(engine, ModelEventFilter(), limit=1)
    assert (row["agent"], row["event"], row["model"], row["data"]) == ("agent-1", "loaded", "c", {"load_s": 1.5})
    assert await recorded(engine) == ["a", "b", "c"]
    assert await recorded(engine, model="b") == ["b"]
    assert await recorded(engine, event="failed") == []


async def test_two_that_project_at_once_write_each_event_once(redis: Redis, engine: AsyncEngine) -> None:
    await tell(redis, *"abcdef")

    async def all_of_it() -> None:
        record = ModelRecord(redis, engine)
        while True:
            try:
                if not await record.step():
                    return
            except CheckpointMoved:
                continue

    await asyncio.gather(*(all_of_it() for _ in range(3)))
    assert await recorded(engine) == list("abcdef")


async def test_an_entry_that_is_none_is_kept_aside_and_the_others_are_recorded(
    redis: Redis, engine: AsyncEngine, record: ModelRecord
) -> None:
    await tell(redis, "a")
    for fields in ({"d": b"no json"}, {"d": b"[1]"}, {"d": b'{"agent": "x"}'}, {"other": b"1"}):
        await redis.xadd(KEY, fields)  # type: ignore[arg-type]
    await tell(redis, "b")
    await record.step()
    assert await recorded(engine) == ["a", "b"]
    async with engine.connect() as connection:
        assert len((await connection.execute(select(ProjectionErrorRow.event_id))).all()) == 4


async def test_pages_follow_each_other_without_a_gap(redis: Redis, engine: AsyncEngine, record: ModelRecord) -> None:
    await tell(redis, *"abcde")
    await record.step()
    seen: list[str] = []
    place = None
    while rows := await recorded_model_events(engine, ModelEventFilter(), before=place, limit=2):
        seen += [row["model"] for row in rows]
        place = (rows[-1]["at_ms"], rows[-1]["seq"])
    assert seen == list("edcba")


async def test_only_what_is_recorded_is_trimmed_from_the_log(
    redis: Redis, engine: AsyncEngine, record: ModelRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_record, "KEPT", 100)
    await tell(redis, *(["a"] * 600))
    assert await record.step() == 500
    assert await redis.xlen(KEY) == 600
    assert await record.step() == 100
    assert 100 <= await redis.xlen(KEY) < 300
    assert len(await recorded_model_events(engine, ModelEventFilter(), limit=1000)) == 600


async def test_events_are_forgotten_with_the_record(redis: Redis, engine: AsyncEngine, record: ModelRecord) -> None:
    await tell(redis, "a", "b")
    await record.step()
    (newest, oldest) = await recorded_model_events(engine, ModelEventFilter())
    assert await record.forget(oldest["at_ms"]) == 0
    assert await record.forget(newest["at_ms"] + 1) == 2
    assert await recorded(engine) == []
