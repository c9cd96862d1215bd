"""Images belong to a job while it may run, and are apart from its body and its events."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.dead_letters import DeadLetters
from scheduler.events import EventType
from scheduler.job_images import with_images
from scheduler.queue import event_key, shard_key
from scheduler.scripts import QueuePolicy
from tests.scheduler.builders import Farm

IMAGES = (b"first image", b"\xff\xd8 the second\n")
SHOWN: dict[str, Any] = {"images": IMAGES, "image_count": 2}


async def test_every_attempt_gets_the_images(farm: Farm) -> None:
    held = await farm.start("w1", **SHOWN)
    assert held.request.images == IMAGES
    await farm.crash("w1")
    (again,) = await farm.claim("w2")
    assert again.request == held.request
    assert not again.request.lacks_images


async def test_neither_the_body_nor_the_events_have_them(farm: Farm) -> None:
    held = await farm.start(**SHOWN)
    body = await farm.queue.body(held.id)
    assert body is not None
    assert body.lacks_images
    assert await with_images(farm.queue, held.id, body) == held.request
    kept = await farm.redis.get(shard_key(0, f"b:{held.id}"))
    told = str(await farm.redis.xrange(event_key(0))).encode()
    assert IMAGES[0] in (await farm.redis.get(shard_key(0, f"i:{held.id}")))
    assert IMAGES[0] not in kept + told
    assert '"images":2' in told.decode().replace(" ", "")


async def test_a_finished_job_has_none_any_more(farm: Farm) -> None:
    held = await farm.start(**SHOWN)
    await farm.finish(held)
    assert await farm.redis.get(shard_key(0, f"i:{held.id}")) is None
    body = await farm.queue.body(held.id)
    assert body is not None
    assert (await with_images(farm.queue, held.id, body)).lacks_images


@pytest.mark.parametrize("end", [EventType.FAILED, EventType.CANCELLED])
async def test_a_job_that_may_be_run_again_keeps_them_as_long_as_its_body(farm: Farm, end: EventType) -> None:
    held = await farm.start(**SHOWN)
    await farm.finish(held, end)
    left_ms = await farm.redis.pttl(shard_key(0, f"i:{held.id}"))
    assert 0 < left_ms <= await farm.redis.pttl(shard_key(0, f"b:{held.id}")) + 1000
    assert await farm.eternal_keys(held.id) == []


async def test_a_dead_job_keeps_them_until_it_is_discarded(farm: Farm) -> None:
    dying = Farm(farm.redis, QueuePolicy(max_crashes=1))
    held = await dying.start(**SHOWN)
    await dying.crash()
    assert await farm.redis.ttl(shard_key(0, f"i:{held.id}")) == -1
    assert await DeadLetters(farm.queue).discard(held.id)
    assert await farm.redis.ttl(shard_key(0, f"i:{held.id}")) > 0


async def test_a_job_without_images_has_no_such_key(farm: Farm) -> None:
    held = await farm.start()
    assert held.request.images == ()
    assert await farm.keys("i:*") == []
