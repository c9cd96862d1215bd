"""The token log refuses what it has and what would leave a hole, and tells every listening node in one message."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgpack
from redis.asyncio import Redis

from scheduler.frames import Chunk, End, FrameId
from scheduler.process import cancel_all
from scheduler.queue import Claimed, shard_key
from scheduler.tokens import Emission, EmitCode
from tests.scheduler.builders import Farm


@contextlib.asynccontextmanager
async def listening(redis: Redis, *nodes: str) -> AsyncIterator[asyncio.Queue[bytes]]:
    """The messages on the channels of some nodes."""
    messages: asyncio.Queue[bytes] = asyncio.Queue()
    subscribed = asyncio.Semaphore(0)

    async def listen() -> None:
        async with redis.pubsub() as pubsub:
            await pubsub.subscribe(*(f"n:{node}" for node in nodes))
            async for message in pubsub.listen():
                if message["type"] == "message":
                    messages.put_nowait(message["data"])
                else:
                    subscribed.release()

    task = asyncio.create_task(listen())
    for _ in nodes:
        await subscribed.acquire()
    yield messages
    await cancel_all([task])


def emission(held: Claimed, sequence: int, text: str) -> Emission:
    return Emission(held.id, held.token, FrameId(held.generation, sequence), (Chunk(0, (7, 8), text),))


async def test_a_frame_is_written_once(farm: Farm) -> None:
    held = await farm.start()
    assert await farm.say(held, 1) is EmitCode.OK
    assert await farm.say(held, 2) is EmitCode.OK
    assert [await farm.say(held, sequence) for sequence in (1, 2)] == [EmitCode.DUPLICATE] * 2
    assert len(await farm.log.read(held.id)) == 2
    snapshot = await farm.queue.snapshot(held.id)
    assert snapshot is not None
    assert snapshot["out"] == "2"


async def test_a_hole_is_refused_and_named(farm: Farm) -> None:
    held = await farm.start()
    await farm.say(held, 1)
    assert await farm.say(held, 3) is EmitCode.GAP
    await farm.redis.delete(shard_key(0, f"t:{held.id}"))
    assert await farm.say(held, 2) is EmitCode.GAP
    assert [await farm.say(held, sequence) for sequence in (1, 2, 3)] == [EmitCode.OK] * 3


async def test_each_job_of_a_step_gets_its_own_answer(farm: Farm) -> None:
    good, stopped, fenced, doubled = [await farm.start() for _ in range(4)]
    await farm.queue.cancel(stopped.id, "me")
    await farm.say(doubled, 1)
    wrong = Emission(fenced.id, good.token, FrameId(1, 1), ())
    unknown = Emission("0-01ARZ3NDEKTSV4RRFFQ69G5FAV", "", FrameId(1, 1), ())
    step = [emission(good, 1, "a"), emission(stopped, 1, "b"), wrong, emission(doubled, 1, "c"), unknown]
    codes = [EmitCode.OK, EmitCode.CANCELLED, EmitCode.FENCED, EmitCode.DUPLICATE, EmitCode.FENCED]
    assert await farm.log.emit(step) == codes
    assert await farm.log.emit([]) == []
    assert len(await farm.log.read(fenced.id)) == 0


async def test_nothing_is_written_after_the_end(farm: Farm) -> None:
    held = await farm.start()
    await farm.finish(held)
    assert await farm.say(held, 1) is EmitCode.FENCED
    assert await farm.say(held, 2, token="") is EmitCode.FENCED
    (end,) = await farm.log.read(held.id)
    assert isinstance(end.body, End)


async def test_a_step_is_one_message_for_each_node(farm: Farm) -> None:
    jobs = [await farm.start(node="a") for _ in range(3)] + [await farm.start(node="b"), await farm.start()]
    await farm.queue.listen(jobs[0].id, "b")
    async with listening(farm.redis, "a", "b") as messages:
        await farm.log.emit([emission(held, 1, str(i)) for i, held in enumerate(jobs)])
        received = [await messages.get(), await messages.get()]
        await farm.finish(jobs[4])
        await farm.finish(jobs[3])
        last = await messages.get()
        assert messages.empty()
    told = []
    for data in (*received, last):
        unpacker = msgpack.Unpacker(raw=True)
        unpacker.feed(data)
        told.append([(job_id.decode(), sequence) for job_id, _, sequence, _ in unpacker])
    assert sorted(told[:2], key=len) == [
        [(jobs[0].id, 1), (jobs[3].id, 1)],
        [(held.id, 1) for held in jobs[:3]],
    ]
    assert told[2] == [(jobs[3].id, 2)]


async def test_reading_goes_on_after_any_frame(farm: Farm) -> None:
    held = await farm.start()
    for sequence in range(1, 12):
        await farm.say(held, sequence, str(sequence))
    everything = await farm.log.read(held.id)
    assert [frame.id.sequence for frame in everything] == list(range(1, 12))
    assert await farm.log.read(held.id, everything[3].id, count=3) == everything[4:7]
    assert await farm.log.read(held.id, everything[-1].id) == []
