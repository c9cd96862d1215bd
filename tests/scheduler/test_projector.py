"""Each event counts once, whoever projects it and whatever fails on the way; the tables equal `replay`."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler import projector as projector_module
from scheduler.checkpoints import Checkpoint, CheckpointMoved
from scheduler.database import open_database
from scheduler.errors import QueueUnavailable, RecordUnavailable
from scheduler.events import EventType
from scheduler.frames import End
from scheduler.jobs import Job, JobState, Lane, replay
from scheduler.process import cancel_all
from scheduler.projector import Projector, rebuild
from scheduler.queue import event_key, shard_key
from scheduler.store import JobFilter, Store
from scheduler.tables import CheckpointRow, EventRow, JobRow, ProjectionErrorRow, UsageRow
from tests.conftest import RedisServer
from tests.scheduler.builders import Farm, make_job
from tests.scheduler.conftest import Eventually

TABLES: tuple[type[Any], ...] = (JobRow, UsageRow, EventRow)


def make_projector(farm: Farm, engine: AsyncEngine) -> Projector:
    return Projector(farm.redis, engine, farm.queue, 0)


@pytest.fixture
def projector(farm: Farm, engine: AsyncEngine) -> Projector:
    """The projector of the farm's only shard."""
    return make_projector(farm, engine)


async def rows(engine: AsyncEngine, table: type[Any]) -> list[Any]:
    key = list(table.__table__.primary_key.columns)
    async with engine.connect() as connection:
        return list((await connection.execute(select(table.__table__).order_by(*key))).all())


async def drain(projector: Projector) -> None:
    """Project to the end of the log."""
    while True:
        try:
            if not await projector.step():
                return
        except CheckpointMoved:
            pass


async def live(farm: Farm, dice: random.Random, jobs: int = 60) -> None:
    """Jobs of all kinds: finished, failed, cancelled, expired, dead, released, waiting."""
    for _ in range(jobs):
        tenant, model = dice.choice("ab"), dice.choice(["demo", "other"])
        parts: dict[str, Any] = {"tenant": tenant, "lane": dice.choice(list(Lane)), "model": model}
        job_id = await farm.submit(durable=dice.random() < 0.2, **parts)
        if dice.random() < 0.1:
            await farm.queue.cancel(job_id, "me")
            continue
        for held in await farm.claim(rows=dice.randint(0, 2)):
            await work(farm, dice, held)
    await farm.crash()


async def work(farm: Farm, dice: random.Random, held: Any) -> None:
    """What may become of a claimed job."""
    await farm.say(held, held.sequence + 1)
    fate = dice.choice(["end", "end", "release", "delay", "crash", "hold"])
    if fate == "end":
        ends = [EventType.FINISHED, EventType.FAILED, EventType.CANCELLED, EventType.EXPIRED]
        await farm.finish(held, dice.choice(ends), output_tokens=dice.randint(0, 9))
    elif fate in ("release", "delay"):
        await farm.queue.release(held.id, held.token, fate, 60_000 if fate == "delay" else 0)
    elif fate == "crash":
        await farm.crash()


async def check_equals_replay(farm: Farm, engine: AsyncEngine) -> None:
    expected = replay(await farm.events())
    found = {job.id: job for job in await Store(engine).jobs(JobFilter(), limit=10_000)}
    assert found == expected
    assert len(await rows(engine, EventRow)) == len(await farm.events())
    ended = [job for job in expected.values() if job.ended_ms]
    usage = await rows(engine, UsageRow)
    assert sum(row.jobs for row in usage) == len(ended)
    for name in ("prompt_tokens", "cached_tokens", "output_tokens"):
        assert sum(getattr(row, name) for row in usage) == sum(_number(job, name) for job in ended)


def _number(job: Job, name: str) -> int:
    numbers = {"prompt_tokens": job.prompt_tokens, "cached_tokens": job.cached_tokens}
    return (numbers | {"output_tokens": job.output_tokens})[name]


async def test_the_projection_equals_replay_and_a_rebuild_equals_the_projection(
    farm: Farm, engine: AsyncEngine, projector: Projector
) -> None:
    dice = random.Random(1)
    for _ in range(5):
        await live(farm, dice)
        await drain(projector)
    states = {job.state for job in replay(await farm.events()).values()}
    assert states > {JobState.FINISHED, JobState.FAILED, JobState.CANCELLED, JobState.DEAD, JobState.QUEUED}
    await check_equals_replay(farm, engine)
    before = [await rows(engine, table) for table in TABLES]
    assert await rebuild(engine) == len(before[2])
    assert [await rows(engine, table) for table in TABLES] == before
    assert await rows(engine, ProjectionErrorRow) == []


async def test_projectors_that_race_count_each_event_once(
    farm: Farm, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setattr(projector_module, "BATCH_EVENTS", 7)
    other = open_database(database_url)
    projectors = [make_projector(farm, engine), make_projector(farm, other), make_projector(farm, engine)]
    await live(farm, random.Random(2), 100)
    await asyncio.gather(*(drain(projector) for projector in projectors))
    await check_equals_replay(farm, engine)
    await other.dispose()


async def test_a_rebuild_while_events_arrive_loses_none(
    farm: Farm, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setattr(projector_module, "BATCH_EVENTS", 5)
    other = open_database(database_url)
    await live(farm, random.Random(3), 80)
    await asyncio.gather(drain(make_projector(farm, engine)), *(rebuild(other) for _ in range(3)))
    await check_equals_replay(farm, engine)
    await other.dispose()


async def test_a_projector_that_comes_second_is_told(farm: Farm, engine: AsyncEngine, projector: Projector) -> None:
    await farm.submit()
    for position in ("0-0", "1-0"):
        async with engine.begin() as connection:
            await connection.execute(delete(CheckpointRow))
            await Checkpoint(engine, "events:0").move(connection, "0-0", "2-0")
        with pytest.raises(CheckpointMoved):
            async with engine.begin() as connection:
                await Checkpoint(engine, "events:0").move(connection, position, "3-0")
    assert await projector.checkpoint() == "2-0"


async def test_malformed_events_are_set_aside_and_stop_nothing(
    farm: Farm, engine: AsyncEngine, projector: Projector
) -> None:
    job_id = await farm.submit()
    entry: dict[Any, Any] = {"t": "claimed", "j": job_id, "at": "1", "d": '{"worker":"w","attempt":1}'}
    wrong: list[dict[Any, Any]] = [
        {"t": "exploded"},
        {"d": "{"},
        {"d": "[1]"},
        {"d": "{}"},
        {"j": b"\xff"},
        {"j": "0-NEVERWAS"},
        {"t": "submitted", "d": "{}"},
    ]
    for fields in wrong:
        await farm.redis.xadd(event_key(0), entry | fields)
    await farm.redis.xadd(event_key(0), {"x": "y"})
    await farm.claim()
    await drain(projector)
    errors = await rows(engine, ProjectionErrorRow)
    assert len(errors) == len(wrong) + 1
    assert all(row.raw and row.error for row in errors)
    job = await Store(engine).job(job_id)
    assert job is not None
    assert job.state is JobState.RUNNING


async def test_what_a_worker_says_of_its_failure_is_stored_whatever_it_is(
    farm: Farm, engine: AsyncEngine, projector: Projector
) -> None:
    held = await farm.start(request_id="r" * 3000, model_asked="m\0" * 500)
    await farm.finish(held, EventType.FAILED, error_code="e" * 300, error="bad \0 é 😀 " + "x" * 10_000)
    await drain(projector)
    job = await Store(engine).job(held.id)
    assert job == replay(await farm.events())[held.id]
    assert job.error is not None
    assert job.error.startswith("bad \ufffd é")
    await rebuild(engine)
    assert await Store(engine).job(held.id) == job


async def test_a_durable_jobs_result_is_stored_before_redis_may_forget_it(
    farm: Farm, engine: AsyncEngine, projector: Projector
) -> None:
    job = make_job(durable=True)
    await Store(engine).accept(job)
    await farm.queue.submit(job)
    (held,) = await farm.claim()
    for sequence in range(1, 5):
        await farm.say(held, sequence, "é")
    await farm.finish(held)
    frames = await farm.log.read(job.id)
    assert await farm.eternal_keys(job.id) != []
    await drain(projector)
    kept = await Store(engine).durable_job(job.id)
    assert kept is not None
    assert kept.request is not None
    assert kept.frames == tuple(frames)
    assert (kept.request.prompts, kept.request.stopping) == ((), job.request.stopping)
    assert kept.ended_ms == (await farm.events())[-1].at_ms
    assert await farm.eternal_keys(job.id) == []
    assert await Store(engine).unrelayed(0) == await Store(engine).unfinished() == []


async def test_a_dead_durable_job_is_kept_for_an_operator(
    farm: Farm, engine: AsyncEngine, projector: Projector
) -> None:
    job = make_job(durable=True)
    await Store(engine).accept(job)
    await farm.queue.submit(job)
    for _ in range(3):
        await farm.claim()
        await farm.crash()
    await drain(projector)
    kept = await Store(engine).durable_job(job.id)
    assert kept is not None
    assert kept.frames is not None
    assert isinstance(kept.frames[-1].body, End)
    assert await farm.redis.ttl(shard_key(0, f"b:{job.id}")) == -1


async def test_without_sql_events_wait_and_none_is_lost(
    farm: Farm, engine: AsyncEngine, projector: Projector, eventually: Eventually
) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE checkpoints RENAME TO away"))
    running = asyncio.create_task(projector.run())
    await live(farm, random.Random(4), 20)
    with pytest.raises(RecordUnavailable):
        await projector.step()
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE away RENAME TO checkpoints"))
    count = len(await farm.events())

    async def caught_up() -> bool:
        return len(await rows(engine, EventRow)) == count

    await eventually(caught_up)
    await cancel_all([running])
    await check_equals_replay(farm, engine)


async def test_a_locked_sqlite_is_waited_for(farm: Farm, database_url: str) -> None:
    if not database_url.startswith("sqlite"):
        pytest.skip("PostgreSQL has no such lock")
    impatient = open_database(f"{database_url}?timeout=0.01")
    projector = make_projector(farm, impatient)
    await farm.submit()
    lock = sqlite3.connect(database_url.removeprefix("sqlite+aiosqlite:///"))
    async with impatient.connect() as connection:
        await connection.execute(text("PRAGMA busy_timeout = 10"))
    lock.execute("BEGIN IMMEDIATE")
    with pytest.raises(RecordUnavailable, match="locked"):
        await projector.step()
    lock.rollback()
    lock.close()
    assert await projector.step() == 1
    await impatient.dispose()


async def test_without_redis_the_projector_says_so(
    own_redis_server: RedisServer, own_redis: Redis, engine: AsyncEngine
) -> None:
    projector = make_projector(Farm(own_redis), engine)
    own_redis_server.kill()
    with pytest.raises(QueueUnavailable):
        await projector.step()
    own_redis_server.start()


async def test_trimming_never_passes_the_checkpoint(farm: Farm, projector: Projector) -> None:
    for _ in range(10):
        await farm.submit()
    assert await projector.trim(0) == 0
    await drain(projector)
    projected = await projector.checkpoint()
    for _ in range(5):
        await farm.submit()
    assert await projector.trim(3_600_000) == 0
    await projector.trim(0)
    ids = [event.id for event in await farm.events()]
    assert ids[0] == projected
    assert len(ids) == 6
    await drain(projector)
    await projector.trim(0)
    assert len(await farm.events()) == 1


async def test_lag_is_zero_only_at_the_end_of_the_log(farm: Farm, projector: Projector) -> None:
    assert await projector.lag_ms() == 0
    await farm.submit()
    assert await projector.lag_ms() > 0
    await drain(projector)
    assert await projector.lag_ms() == 0


async def test_a_first_end_is_final_after_redis_was_set_back(
    farm: Farm, engine: AsyncEngine, projector: Projector
) -> None:
    held = await farm.start()
    await farm.finish(held, output_tokens=5)
    await drain(projector)
    data = '{"output_tokens":9}'
    await farm.redis.xadd(event_key(0), {"t": "finished", "j": held.id, "at": "1", "d": data})
    await drain(projector)
    job = await Store(engine).job(held.id)
    assert job is not None
    assert job.output_tokens == 5
    assert [row.output_tokens for row in await rows(engine, UsageRow)] == [5]
