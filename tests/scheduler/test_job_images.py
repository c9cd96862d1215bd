"""Images belong to a job while it may run, apart from body and events; a tenant's equal ones are kept once."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.dead_letters import DeadLetters
from scheduler.events import EventType
from scheduler.job_images import with_images
from scheduler.jobs import JobState
from scheduler.queue import Claimed, event_key, shard_key
from scheduler.requests import image_digest
from scheduler.scripts import QueuePolicy
from tests.scheduler.builders import Farm

IMAGES = (b"first image", b"\xff\xd8 the second\n", b"first image")
SHOWN: dict[str, Any] = {"images": IMAGES, "image_count": 3}


async def images(farm: Farm, held: Claimed) -> tuple[bytes, ...]:
    """As a worker gets them."""
    return (await with_images(farm.queue, held.id, held.request)).images


def image_key(image: bytes, tenant: str = "default") -> str:
    return shard_key(0, f"img:{tenant}:{image_digest(image)}")


async def kept_images(farm: Farm) -> list[str]:
    """The names of all keys that hold images or say who uses them."""
    return [*await farm.keys("img:*"), *await farm.keys("uses:*")]


async def eternal_images(farm: Farm) -> list[str]:
    """Those of them that have no time to live."""
    return [name for name in await kept_images(farm) if await farm.redis.ttl(shard_key(0, name)) == -1]


async def test_every_attempt_gets_the_images(farm: Farm) -> None:
    held = await farm.start("w1", **SHOWN)
    assert await images(farm, held) == IMAGES
    await farm.crash("w1")
    (again,) = await farm.claim("w2")
    assert again.request == held.request
    assert await images(farm, again) == IMAGES


async def test_neither_the_body_nor_the_claim_nor_the_events_have_them(farm: Farm) -> None:
    held = await farm.start(**SHOWN)
    body = await farm.queue.body(held.id)
    assert body == held.request
    assert body.lacks_images
    kept = await farm.redis.get(shard_key(0, f"b:{held.id}"))
    told = str(await farm.redis.xrange(event_key(0))).encode()
    assert IMAGES[0] in (await farm.redis.get(image_key(IMAGES[0])))
    assert IMAGES[0] not in kept + told
    assert '"images":3' in told.decode().replace(" ", "")


async def test_a_finished_job_has_none_any_more(farm: Farm) -> None:
    held = await farm.start(**SHOWN)
    await farm.finish(held)
    assert await images(farm, held) == ()
    assert await kept_images(farm) == await farm.keys("i:*") == []


@pytest.mark.parametrize("end", [EventType.FAILED, EventType.CANCELLED])
async def test_a_job_that_may_be_run_again_keeps_them_as_long_as_its_body(farm: Farm, end: EventType) -> None:
    held = await farm.start(**SHOWN)
    await farm.finish(held, end)
    assert await images(farm, held) == IMAGES
    body_ms = await farm.redis.pttl(shard_key(0, f"b:{held.id}"))
    for key in (shard_key(0, f"i:{held.id}"), *(image_key(image) for image in IMAGES)):
        assert 0 < await farm.redis.pttl(key) <= body_ms + 1000
    assert await farm.eternal_keys(held.id) == []
    assert await eternal_images(farm) == []


async def test_a_dead_job_keeps_them_until_it_is_discarded(farm: Farm) -> None:
    dying = Farm(farm.redis, QueuePolicy(max_crashes=1))
    held = await dying.start(**SHOWN)
    await dying.crash()
    assert await farm.redis.ttl(image_key(IMAGES[1])) == -1
    assert await DeadLetters(farm.queue).discard(held.id)
    assert await farm.redis.ttl(image_key(IMAGES[1])) > 0
    assert await images(farm, held) == IMAGES


@pytest.mark.parametrize("end", [EventType.FINISHED, EventType.FAILED])
async def test_a_durable_jobs_go_once_the_record_has_its_end(farm: Farm, end: EventType) -> None:
    held = await farm.start(durable=True, **SHOWN)
    await farm.finish(held, end)
    if end is EventType.FAILED:
        assert await farm.redis.ttl(image_key(IMAGES[0])) == -1
    await farm.queue.let_expire([held.id])
    assert await eternal_images(farm) == []
    assert await farm.eternal_keys(held.id) == []


async def test_waiting_jobs_that_are_cancelled_or_expire_let_go_of_them(farm: Farm) -> None:
    cancelled, expired = await farm.submit(**SHOWN), await farm.submit(**SHOWN, deadline_ms=1)
    assert await farm.queue.cancel(cancelled, "test") is JobState.QUEUED
    while not await farm.queue.expire(0):
        pass
    assert await farm.state(expired) is JobState.EXPIRED
    assert await eternal_images(farm) == []


async def test_an_image_of_many_jobs_is_kept_once_until_the_last_of_them_needs_it_no_more(farm: Farm) -> None:
    shared: dict[str, Any] = {"images": IMAGES[:1], "image_count": 1}
    first = await farm.start(**shared)
    second = await farm.start("w2", **shared)
    third = await farm.start("w3", **SHOWN)
    assert len(await farm.keys("img:*")) == 2
    await farm.finish(first, EventType.FAILED)
    assert await farm.redis.ttl(image_key(IMAGES[0])) == -1
    await farm.finish(third)
    assert await farm.redis.exists(image_key(IMAGES[1])) == 0
    assert await images(farm, second) == IMAGES[:1]
    await farm.finish(second)
    assert await images(farm, first) == IMAGES[:1]
    assert await farm.redis.ttl(image_key(IMAGES[0])) > 0
    again = await farm.start(**shared)
    assert await farm.redis.ttl(image_key(IMAGES[0])) == -1
    assert await images(farm, again) == IMAGES[:1]


async def test_tenants_share_no_image(farm: Farm) -> None:
    mine = await farm.start(tenant="a", **SHOWN)
    theirs = await farm.start("w2", tenant="b", **SHOWN)
    assert len(await farm.keys("img:*")) == 4
    await farm.finish(mine)
    assert await farm.redis.exists(image_key(IMAGES[0], "a")) == 0
    assert await images(farm, theirs) == IMAGES


async def test_a_job_without_images_has_no_such_key(farm: Farm) -> None:
    held = await farm.start()
    assert held.request.images == ()
    assert await kept_images(farm) == await farm.keys("i:*") == []
