"""What a consumer takes: nothing any more once it drains, and nothing beside a suspect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from ulid import ULID

import workers.demo
from scheduler.jobs import JobState
from scheduler.queue import shard_key
from tests.api.scripted_farm import until
from tests.scheduler.builders import POOL, Farm
from workers.consumer import Consumer
from workers.engine import load_engine
from workers.engine_thread import EngineThread
from workers.room import RowBounds
from workers.use import Use

DEMO = str(Path(workers.demo.__file__).parent)


@pytest.fixture
async def idle(redis: Redis) -> AsyncIterator[tuple[Farm, Consumer]]:
    """A consumer of two shards over the demo model; its loops are not running."""
    farm = Farm(redis, shards=2)
    engine = EngineThread(
        lambda: load_engine(DEMO, max_sequences=4), on_chunks=lambda chunks: None, on_failure=lambda error: None
    )
    await asyncio.to_thread(engine.start)
    consumer = Consumer(farm.queue, engine, POOL, Use(lambda jobs, keep_alive_s: None), RowBounds(4))
    await farm.queue.heartbeat("w1", [], register=True, shard=1)
    consumer.begin_lease(await farm.worker())
    yield farm, consumer
    await asyncio.to_thread(engine.stop)


async def test_a_claim_that_is_under_way_when_the_drain_begins_is_handed_back(idle: tuple[Farm, Consumer]) -> None:
    farm, consumer = idle
    job_id = await farm.submit(id=f"0-{ULID()}")
    await farm.redis.client_pause(200, all=False)
    claiming = asyncio.create_task(consumer.claim_loop())
    await asyncio.sleep(0)  # its call is on the way
    await consumer.drain(0)
    await claiming
    assert consumer.held == []
    snapshot = await farm.queue.snapshot(job_id)
    assert snapshot is not None
    assert (snapshot["state"], snapshot["crashes"]) == (JobState.QUEUED, "0")


async def test_nothing_of_another_shard_runs_beside_a_suspect(idle: tuple[Farm, Consumer]) -> None:
    farm, consumer = idle
    held = await farm.start("w0", id=f"0-{ULID()}")
    await farm.redis.hset(shard_key(0, f"j:{held.id}"), "crashes", "1")  # type: ignore[misc]
    await farm.crash("w0")
    other = await farm.submit(id=f"1-{ULID()}")
    claiming = asyncio.create_task(consumer.claim_loop())

    async def taken() -> bool:
        return bool(consumer.held)

    await until(taken)
    await consumer.drain(0)
    await claiming
    assert await farm.told(held.id) == ["submitted", "claimed", "requeued", "claimed", "requeued"]
    snapshot = await farm.queue.snapshot(other)
    assert snapshot is not None
    assert snapshot["attempt"] == "0"


async def test_a_worker_leaves_to_others_what_its_engine_cannot_begin_soon(redis: Redis) -> None:
    farm = Farm(redis)
    engine = EngineThread(
        lambda: load_engine(DEMO, max_sequences=4), on_chunks=lambda chunks: None, on_failure=lambda error: None
    )  # not started: it begins nothing
    bounds = RowBounds(4, reserved=1, ahead=2)
    consumer = Consumer(farm.queue, engine, POOL, Use(lambda jobs, keep_alive_s: None), bounds)
    consumer.begin_lease(await farm.worker())
    job_ids = [await farm.submit() for _ in range(4)]
    claiming = asyncio.create_task(consumer.claim_loop())

    async def taken() -> bool:
        return len(consumer.held) >= 2

    await until(taken)
    await consumer.drain(0)
    await claiming
    attempts = [(await farm.queue.snapshot(job_id) or {})["attempt"] for job_id in job_ids]
    assert attempts == ["1", "1", "0", "0"]
