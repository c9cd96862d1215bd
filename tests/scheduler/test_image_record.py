"""Async jobs' images are in SQL apart from the bodies, once for a tenant, until the last of their jobs has ended."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.events import EventType
from scheduler.image_record import drop_images
from scheduler.job_images import with_images
from scheduler.projector import Projector
from scheduler.queue import NewJob
from scheduler.relay import Relay
from scheduler.store import Store, insert_durable
from scheduler.tables import DurableJobRow, ImageRow, JobImageRow
from tests.scheduler.builders import Farm, make_job

IMAGES = (b"first", b"second" * 1000, b"first")


def seeing_job(*images: bytes, **parts: Any) -> NewJob:
    return make_job(durable=True, images=images, image_count=len(images), **parts)


async def uses(engine: AsyncEngine) -> dict[tuple[str, bytes], int]:
    """How often each image is said to be used, by tenant and content."""
    async with engine.connect() as connection:
        rows = await connection.execute(select(ImageRow.tenant, ImageRow.data, ImageRow.uses))
        links = await connection.execute(select(func.count()).select_from(JobImageRow))
    found = {(row.tenant, row.data): row.uses for row in rows}
    assert links.scalar_one() == sum(found.values())
    return found


async def drop(engine: AsyncEngine, *job_ids: str) -> None:
    async with engine.begin() as connection:
        await drop_images(connection, job_ids)


async def test_a_job_comes_back_with_its_images_in_order_and_its_body_has_none(engine: AsyncEngine) -> None:
    store, job = Store(engine), seeing_job(*IMAGES)
    await store.accept(job)
    (found,) = await store.unrelayed(0)
    assert found.request == job.request.without_images()
    assert await store.with_images(found) == job
    async with engine.connect() as connection:
        body = (await connection.execute(select(DurableJobRow.body))).scalar_one()
    assert body is not None
    assert IMAGES[1] not in body
    known = await store.durable_job(job.id)
    assert known is not None
    assert known.request == job.request.without_images()


async def test_equal_images_are_kept_once_for_a_tenant_until_their_last_job_has_ended(engine: AsyncEngine) -> None:
    store = Store(engine)
    first, second, other = seeing_job(*IMAGES), seeing_job(b"first"), seeing_job(b"first", tenant="other")
    for job in (first, second, other):
        await store.accept(job)
    assert await uses(engine) == {("default", b"first"): 3, ("default", IMAGES[1]): 1, ("other", b"first"): 1}
    await drop(engine, first.id)
    await drop(engine, first.id)
    assert await uses(engine) == {("default", b"first"): 1, ("other", b"first"): 1}
    assert (await store.with_images(replace(second, request=second.request.without_images()))) == second
    await drop(engine, second.id, other.id)
    assert await uses(engine) == {}


async def test_a_job_that_is_accepted_twice_counts_once(engine: AsyncEngine) -> None:
    store, job = Store(engine), seeing_job(*IMAGES)
    assert await store.accept(job) == await store.accept(job) == job.id
    with pytest.raises(IntegrityError):
        async with engine.begin() as connection:
            await insert_durable(connection, [seeing_job(b"first"), job])
    assert await uses(engine) == {("default", b"first"): 2, ("default", IMAGES[1]): 1}


async def test_jobs_that_come_and_go_at_once_leave_nothing_and_lose_nothing(engine: AsyncEngine) -> None:
    store, keeper = Store(engine), seeing_job(b"1", b"2")
    await store.accept(keeper)

    async def come_and_go(turn: int) -> None:
        job = seeing_job(*sorted((b"1", b"2", b"3"), reverse=bool(turn % 2)))
        await store.accept(job)
        assert len((await store.with_images(replace(job, request=job.request.without_images()))).request.images) == 3
        await drop(engine, job.id)

    await asyncio.gather(*(come_and_go(turn) for turn in range(8)))
    assert await uses(engine) == {("default", b"1"): 1, ("default", b"2"): 1}


async def test_a_relayed_job_has_its_images_and_its_end_forgets_them(farm: Farm, engine: AsyncEngine) -> None:
    job = seeing_job(*IMAGES)
    await Store(engine).accept(job)
    assert await Relay(farm.redis, farm.queue, Store(engine)).relay(0) == 1
    (held,) = await farm.claim()
    assert (await with_images(farm.queue, job.id, held.request)).images == IMAGES
    await farm.finish(held, EventType.FAILED)
    while await Projector(farm.redis, engine, farm.queue, 0).step():
        pass
    assert await uses(engine) == {}


async def test_a_queue_without_memory_gets_the_images_again(farm: Farm, engine: AsyncEngine) -> None:
    job, relay = seeing_job(*IMAGES), Relay(farm.redis, farm.queue, Store(engine))
    await Store(engine).accept(job)
    await relay.relay(0)
    await farm.redis.flushdb()
    assert await relay.sweep() == 1
    (held,) = await farm.claim()
    assert (await with_images(farm.queue, job.id, held.request)).images == IMAGES


async def test_a_job_that_ended_meanwhile_is_not_given_to_the_queue_without_its_images(
    farm: Farm, engine: AsyncEngine
) -> None:
    job = seeing_job(*IMAGES)
    await Store(engine).accept(job)
    await drop(engine, job.id)
    await Relay(farm.redis, farm.queue, Store(engine)).relay(0)
    assert await farm.state(job.id) is None
