"""What SQL has accepted reaches the queue, also after an outage and after Redis has lost its memory."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.errors import QueueFull, QueueUnavailable
from scheduler.jobs import JobState
from scheduler.process import cancel_all
from scheduler.projector import Projector
from scheduler.queue import shard_key
from scheduler.relay import Relay
from scheduler.scripts import QueuePolicy
from scheduler.store import Store
from scheduler.tables import DurableJobRow
from tests.conftest import RedisServer
from tests.scheduler.builders import Farm, make_job
from tests.scheduler.conftest import Eventually


def make_relay(farm: Farm, engine: AsyncEngine) -> Relay:
    return Relay(farm.redis, farm.queue, Store(engine))


async def accept(engine: AsyncEngine, count: int = 1) -> list[str]:
    return [await Store(engine).accept(make_job(durable=True)) for _ in range(count)]


async def test_an_accepted_job_is_submitted_once(farm: Farm, engine: AsyncEngine) -> None:
    relay, (job_id,) = make_relay(farm, engine), await accept(engine)
    assert await relay.relay(60_000) == 0
    assert await relay.relay(0) == 1
    assert await relay.relay(0) == 0
    assert await farm.state(job_id) is JobState.QUEUED


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_node_whose_clock_is_wrong_accepts_as_any_other(
    farm: Farm, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """F41: another process relays the job, neither an hour too late nor with an hour less until its deadline."""
    job, true_ns, began_s = make_job(durable=True, deadline_ms=600_000), time.time_ns, time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: true_ns() + hours * 3600 * 10**9)
        await Store(engine).accept(job)
    assert await make_relay(farm, engine).relay(0) == 1
    seconds, micros = await farm.redis.time()
    deadline_ms = await farm.redis.zscore(shard_key(0, "ddl"), job.id)
    left_ms = deadline_ms - (seconds * 1000 + micros / 1000)
    assert 600_000 - (time.monotonic() - began_s) * 1000 - 1000 < left_ms <= 600_000


async def test_a_job_that_its_node_submitted_itself_is_not_doubled(farm: Farm, engine: AsyncEngine) -> None:
    job = make_job(durable=True)
    await Store(engine).accept(job)
    await farm.queue.submit(job)
    await asyncio.gather(*(make_relay(farm, engine).relay(0) for _ in range(3)))
    assert await farm.told(job.id) == ["submitted"]


async def test_a_job_accepted_while_redis_was_down_is_relayed_when_it_is_back(
    own_redis_server: RedisServer, own_redis: Redis, engine: AsyncEngine, eventually: Eventually
) -> None:
    farm = Farm(own_redis)
    own_redis_server.kill()
    ids = await accept(engine, 3)
    with pytest.raises(QueueUnavailable):
        await make_relay(farm, engine).relay(0)
    own_redis_server.start()
    assert await make_relay(farm, engine).relay(0) == 3
    assert [await farm.state(job_id) for job_id in ids] == [JobState.QUEUED] * 3


async def test_the_relay_outlives_an_outage(
    own_redis_server: RedisServer, own_redis: Redis, engine: AsyncEngine, eventually: Eventually
) -> None:
    farm = Farm(own_redis)
    (job_id,) = await accept(engine)
    await make_relay(farm, engine).relay(0)
    own_redis_server.kill()
    running = asyncio.create_task(make_relay(farm, engine).run(period_s=0.02, sweep_every=1))
    own_redis_server.start()
    await own_redis.flushall()

    async def known() -> bool:
        return await farm.state(job_id) is not None

    await eventually(known)
    await cancel_all([running])


async def test_a_restart_of_redis_is_followed_by_a_sweep(
    own_redis_server: RedisServer, own_redis: Redis, engine: AsyncEngine, eventually: Eventually
) -> None:
    """F16: an async job that a power loss took out of the queue need not wait for the next regular sweep."""
    farm, disk = Farm(own_redis), own_redis_server.disk()
    (job_id,) = await accept(engine)
    await make_relay(farm, engine).relay(0)
    await own_redis.flushall()

    async def known() -> bool:
        return await farm.state(job_id) is not None

    running = asyncio.create_task(make_relay(farm, engine).run(period_s=0.02, sweep_every=10**9))
    await eventually(known)
    own_redis_server.lose_power(disk)
    await eventually(known)
    await cancel_all([running])


async def test_what_redis_forgot_is_found_by_the_sweep(farm: Farm, engine: AsyncEngine) -> None:
    relay, store, ids = make_relay(farm, engine), Store(engine), await accept(engine, 6)
    projector = Projector(farm.redis, engine, farm.queue, 0)
    await relay.relay(0)
    waiting, running, delayed, *ended = await farm.claim(rows=6)
    await farm.queue.release(waiting.id, waiting.token, "drain")
    await farm.queue.release(delayed.id, delayed.token, "retry", 60_000)
    for held in ended:
        await farm.finish(held)
    assert await relay.sweep() == 0
    await projector.step()
    await farm.redis.flushall()
    assert await relay.sweep() == 3
    assert await relay.sweep() == 0
    again = await farm.claim(rows=9)
    assert {held.id for held in again} == {waiting.id, running.id, delayed.id}
    for held in again:
        await farm.finish(held)
    await projector.step()
    records = [await store.job(job_id) for job_id in ids]
    assert [job.state for job in records if job] == [JobState.FINISHED] * 6
    assert await store.unfinished() == []


async def test_a_key_that_a_synchronous_job_has_used_does_not_stop_an_accepted_job(
    farm: Farm, engine: AsyncEngine
) -> None:
    await farm.submit(idempotency_key="k", body_hash="one")
    for body_hash in ("one", "two"):
        job = make_job(idempotency_key="k", body_hash=body_hash, durable=True, tenant="default")
        await Store(engine).accept(replace(job, tenant="default") if body_hash == "one" else replace(job, tenant="t2"))
    await farm.submit(idempotency_key="k", body_hash="three", tenant="t2")
    assert await make_relay(farm, engine).relay(0) == 2
    assert len(await farm.claim(rows=9)) == 4


async def test_a_job_of_a_shard_that_is_no_more_stops_no_others(redis: Redis, engine: AsyncEngine) -> None:
    farm = Farm(redis, shards=1)
    await Store(engine).accept(make_job(id="3-01ARZ3NDEKTSV4RRFFQ69G5FAV", durable=True))
    (job_id,) = await accept(engine)
    await make_relay(farm, engine).relay(0)
    assert await farm.state(job_id) is JobState.QUEUED


async def test_a_full_queue_is_tried_again_later(redis: Redis, engine: AsyncEngine) -> None:
    farm = Farm(redis, QueuePolicy(max_waiting_jobs=1))
    await accept(engine, 2)
    with pytest.raises(QueueFull):
        await make_relay(farm, engine).relay(0)
    await farm.claim()
    assert await make_relay(farm, engine).relay(0) == 1


async def test_a_model_without_room_holds_up_no_other(redis: Redis, engine: AsyncEngine) -> None:
    farm = Farm(redis, QueuePolicy(max_model_jobs=1))
    await accept(engine, 3)
    other = await Store(engine).accept(make_job(pool="other", durable=True))
    with pytest.raises(QueueFull, match="this model"):
        await make_relay(farm, engine).relay(0)
    assert await farm.state(other) is JobState.QUEUED


async def test_a_job_that_a_newer_node_accepted_is_relayed_without_what_is_not_known_here(
    farm: Farm, engine: AsyncEngine
) -> None:
    """F48: a farm is upgraded node by node."""
    (job_id,) = await accept(engine)
    async with engine.begin() as connection:
        submission = (await connection.execute(select(DurableJobRow.submission))).scalar_one()
        await connection.execute(update(DurableJobRow).values(submission=submission | {"mood": "good"}))
    assert await make_relay(farm, engine).relay(0) == 1
    assert await farm.state(job_id) is JobState.QUEUED
