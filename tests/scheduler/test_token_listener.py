"""Every follower gets every frame, in order, once: whatever is lost on the way, and whenever it joins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest
from redis.asyncio import Redis

from scheduler.connections import blocking_client
from scheduler.errors import UnknownJob
from scheduler.frames import START, Chunk, End, Frame, FrameId
from scheduler.heard import Heard
from scheduler.queue import Claimed, shard_key
from scheduler.tokens import MAX_BACKLOG_FRAMES, Emission, TokenListener
from tests.conftest import RedisServer
from tests.scheduler.builders import Farm, make_job
from tests.scheduler.conftest import Eventually
from tests.waiting import PATIENCE_S

Node = Callable[..., Awaitable[TokenListener]]
TICK_S = 0.05


@pytest.fixture
async def node(farm: Farm, redis_server: RedisServer) -> AsyncIterator[Node]:
    """Start API nodes' ears on the shared server."""
    async with nodes_of(farm, redis_server.url) as start:
        yield start


@asynccontextmanager
async def nodes_of(farm: Farm, url: str) -> AsyncIterator[Node]:
    """A function that starts listeners; they are closed at the end."""
    redis = blocking_client(url)
    listeners: list[TokenListener] = []

    async def start(name: str = "n1") -> TokenListener:
        listeners.append(TokenListener(redis, farm.queue, name))
        await listeners[-1].start()
        return listeners[-1]

    yield start
    for listener in listeners:
        await listener.close()
    await redis.aclose()


async def collect(listener: TokenListener, job_id: str, last: FrameId = START) -> list[Frame]:
    """All frames up to the end."""
    async with asyncio.timeout(PATIENCE_S):
        return [frame async for frame in listener.follow(job_id, Heard(last), TICK_S) if frame is not None]


async def speak(farm: Farm, held: Claimed, count: int, first: int = 1) -> None:
    for sequence in range(first, first + count):
        await farm.say(held, sequence, str(sequence))


def id_of(held: Claimed, sequence: int) -> FrameId:
    """Of a frame that this claim has written."""
    return FrameId(held.generation, sequence) if sequence else START


def check(frames: list[Frame], count: int, first: int = 1) -> None:
    """Frames `first`..`count` and then the end."""
    assert [frame.id.sequence for frame in frames] == list(range(first, count + 2))
    assert isinstance(frames[-1].body, End)


async def test_a_follower_hears_all_frames_and_the_end(farm: Farm, node: Node) -> None:
    listener, held = await node(), await farm.start()
    heard = asyncio.create_task(collect(listener, held.id))
    await speak(farm, held, 50)
    await farm.finish(held)
    check(await heard, 50)


async def test_a_late_follower_reads_the_log_first(farm: Farm, node: Node) -> None:
    listener, held = await node(), await farm.start()
    await speak(farm, held, 20)
    heard = [asyncio.create_task(collect(listener, held.id, id_of(held, last))) for last in (0, 7, 20)]
    await speak(farm, held, 20, 21)
    await farm.finish(held)
    for task, first in zip(heard, (1, 8, 21), strict=True):
        check(await task, 40, first)
    check(await collect(listener, held.id), 40)


async def test_two_nodes_and_two_followers_on_one_hear_the_same(farm: Farm, node: Node) -> None:
    held = await farm.start()
    listeners = [await node("a"), await node("b")]
    heard = [asyncio.create_task(collect(listener, held.id)) for listener in listeners * 2]
    await speak(farm, held, 30)
    await farm.finish(held)
    for task in heard:
        check(await task, 30)


async def test_lost_messages_are_read_from_the_log(farm: Farm, node: Node, eventually: Eventually) -> None:
    listener, held = await node(), await farm.start()
    heard = asyncio.create_task(collect(listener, held.id))
    for sequence in range(1, 61):
        await farm.say(held, sequence, str(sequence))
        if sequence % 7 == 0:
            await farm.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
    await farm.finish(held)
    check(await heard, 60)


async def test_the_live_channel_comes_back_after_it_was_cut(farm: Farm, node: Node, eventually: Eventually) -> None:
    listener, held = await node(), await farm.start()

    async def subscribers() -> int:
        return int((await farm.redis.pubsub_numsub("n:n1"))[0][1])

    await eventually(subscribers)
    await farm.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
    await eventually(subscribers)
    frames = listener.follow(held.id, tick_s=60)
    first = asyncio.ensure_future(anext(frames))
    await eventually(lambda: _listened(farm, held.id))
    await farm.say(held, 1)
    assert await first is not None
    await frames.aclose()


async def _listened(farm: Farm, job_id: str) -> bool:
    return (await farm.queue.snapshot(job_id) or {})["rt"] == "n1"


async def test_silence_is_told_by_ticks(farm: Farm, node: Node) -> None:
    listener, held = await node(), await farm.start()
    async with aclosing(listener.follow(held.id, tick_s=0.01)) as frames:
        assert [await anext(frames) for _ in range(3)] == [None] * 3
        await farm.say(held, 1)
        assert (await _next(frames)).id == id_of(held, 1)


async def test_a_listener_that_hears_nothing_still_follows_the_log(farm: Farm, redis: Redis) -> None:
    deaf = TokenListener(redis, farm.queue, "deaf")
    held = await farm.start()
    heard = asyncio.create_task(collect(deaf, held.id))
    await speak(farm, held, 10)
    await farm.finish(held)
    check(await heard, 10)


async def test_a_follower_that_falls_far_behind_goes_on_from_the_log(farm: Farm, node: Node) -> None:
    listener, held = await node(), await farm.start()
    async with aclosing(listener.follow(held.id, tick_s=TICK_S)) as frames:
        assert await anext(frames) is None
        count = MAX_BACKLOG_FRAMES + 50
        await speak(farm, held, count)
        await farm.finish(held)
        check([frame async for frame in frames if frame is not None], count)


async def test_frames_go_on_when_another_worker_resumes(farm: Farm, node: Node) -> None:
    listener, held = await node(), await farm.start()
    heard = asyncio.create_task(collect(listener, held.id))
    await speak(farm, held, 5)
    await farm.crash()
    await farm.say(held, 6, "zombie")
    (resumed,) = await farm.claim("w2")
    await speak(farm, resumed, 5, 6)
    await farm.finish(resumed)
    check(await heard, 10)


async def test_an_unknown_job_is_said_to_be_unknown(farm: Farm, node: Node) -> None:
    listener = await node()
    for job_id in (make_job().id, "nonsense"):
        with pytest.raises(UnknownJob):
            await collect(listener, job_id)


async def test_an_ended_job_whose_log_is_gone_is_unknown(farm: Farm, node: Node) -> None:
    listener, held = await node(), await farm.start()
    await farm.finish(held)
    await farm.redis.delete(shard_key(0, f"t:{held.id}"))
    with pytest.raises(UnknownJob):
        await collect(listener, held.id)


async def test_a_job_that_redis_forgets_becomes_unknown_while_followed(farm: Farm, node: Node) -> None:
    listener, held = await node(), await farm.start()
    async with aclosing(listener.follow(held.id, tick_s=TICK_S)) as frames:
        assert await anext(frames) is None
        await farm.redis.flushall()
        with pytest.raises(UnknownJob):
            assert [frame async for frame in frames if frame is not None] == []


async def test_who_has_seen_the_end_gets_nothing_more(farm: Farm, node: Node) -> None:
    listener, held = await node(), await farm.start()
    await speak(farm, held, 2)
    await farm.finish(held)
    assert await collect(listener, held.id, id_of(held, 3)) == []


async def test_what_redis_lost_and_another_worker_wrote_again_is_told_once(
    own_redis_server: RedisServer, own_redis: Redis
) -> None:
    """F16: after a power loss the log ends earlier; the next worker cuts the same text into other frames."""
    farm = Farm(own_redis)
    async with asyncio.timeout(PATIENCE_S), nodes_of(farm, own_redis_server.url) as start:
        listener, held = await start(), await farm.start()
        await speak(farm, held, 3)
        async with aclosing(listener.follow(held.id, tick_s=TICK_S)) as stream:
            told = [await _next(stream) for _ in range(3)]
            disk = own_redis_server.disk()
            await speak(farm, held, 5, 4)
            told += [await _next(stream) for _ in range(5)]
            own_redis_server.lose_power(disk)
            await farm.crash()
            (again,) = await farm.claim("w2")
            assert (again.sequence, again.generation > held.generation) == (3, True)
            tokens = tuple(range(4, 13))
            for sequence, part in ((4, tokens[:4]), (5, tokens[4:])):  # two frames where there were nine
                chunk = Chunk(0, part, "".join(map(str, part)))
                await farm.log.emit([Emission(again.id, again.token, FrameId(again.generation, sequence), (chunk,))])
            await farm.finish(again)
            told += [frame async for frame in stream if frame is not None]
    chunks = [chunk for frame in told if not isinstance(frame.body, End) for chunk in frame.body]
    assert [token for chunk in chunks for token in chunk.token_ids] == list(range(1, 13))
    assert "".join(chunk.text for chunk in chunks) == "123456789101112"


async def _next(stream: AsyncIterator[Frame | None]) -> Frame:
    while (frame := await anext(stream)) is None:
        pass
    return frame


async def test_a_malformed_message_does_not_make_a_node_deaf(farm: Farm, node: Node, eventually: Eventually) -> None:
    listener, held = await node(), await farm.start()
    heard = asyncio.create_task(collect(listener, held.id))
    await eventually(lambda: _listened(farm, held.id))
    for data in (b"\xc1", b"\x94\x01\x02\x03\x04", b"\x91\xc0"):
        await farm.redis.publish("n:n1", data)
    await speak(farm, held, 5)
    await farm.finish(held)
    check(await heard, 5)


async def test_a_stream_outlives_the_server(own_redis_server: RedisServer, own_redis: Redis) -> None:
    farm = Farm(own_redis)
    async with asyncio.timeout(PATIENCE_S), nodes_of(farm, own_redis_server.url) as start:
        listener, held = await start(), await farm.start()
        async with aclosing(listener.follow(held.id, tick_s=TICK_S)) as stream:
            frames = [frame async for frame in _until(stream, farm, held)]
            own_redis_server.kill()
            assert await anext(stream) is None
            own_redis_server.start()
            await speak(farm, held, 10, 11)
            await farm.finish(held)
            frames += [frame async for frame in stream if frame is not None]
    check(frames, 20)


async def _until(stream: AsyncIterator[Frame | None], farm: Farm, held: Claimed) -> AsyncIterator[Frame]:
    """Ten frames, each said when the one before has been heard."""
    for sequence in range(1, 11):
        await farm.say(held, sequence, str(sequence))
        yield await _next(stream)
