"""Chunks on their way from a worker to whoever listens: the token log is the truth, pub/sub is the fast path.

A frame that pub/sub lost is read from the log; nothing is ever delivered past a gap or twice, also when Redis has lost
the end of a log and a worker has written it again (scheduler/heard.py).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import msgpack
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from scheduler.errors import QueueUnavailable, UnknownJob
from scheduler.frames import START, Chunk, End, Frame, FrameId, decode_body, encode_chunks
from scheduler.glances import Glances
from scheduler.heard import Heard
from scheduler.jobs import TERMINAL
from scheduler.outages import redis_errors
from scheduler.process import cancel_all
from scheduler.queue import JobQueue, shard_key

log = structlog.get_logger()

MAX_BACKLOG_FRAMES = 1024
"""A reader further behind than this loses its live queue and goes on from the log."""


class EmitCode(IntEnum):
    """What the log answered to one job's frame."""

    OK = 0
    CANCELLED = 1
    FENCED = 2
    DUPLICATE = 3
    GAP = 4
    EXPIRED = 5


@dataclass(frozen=True, slots=True)
class Emission:
    """One job's part of an engine step; `token` proves that the worker still holds the job."""

    job_id: str
    token: str
    id: FrameId
    chunks: tuple[Chunk, ...]


class TokenLog:
    """Append to and read the token logs."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    async def emit(self, emissions: Sequence[Emission], *, shard: int = 0) -> list[EmitCode]:
        """Append a whole step's frames (all of one shard) and publish them; one code per emission.

        Idempotent: a frame already in the log answers DUPLICATE. Raises QueueUnavailable.
        """
        args: list[str | int | bytes] = []
        for emission in emissions:
            tokens = sum(chunk.tokens for chunk in emission.chunks)
            frame_id, payload = emission.id, encode_chunks(emission.chunks)
            args += [emission.job_id, emission.token, frame_id.generation, frame_id.sequence, tokens, payload]
        async with redis_errors():
            return [EmitCode(code) for code in await self._queue.run("emit", shard, *args)]

    async def read(
        self, job_id: str, after: FrameId = START, count: int = 512, *, with_it: bool = False
    ) -> list[Frame]:
        """Frames after `after` (and that one, `with_it`), oldest first, at most `count`. Raises QueueUnavailable."""
        start = str(after) if with_it else f"({after}"
        async with redis_errors():
            entries = await self._queue.redis.xrange(self._key(job_id), min=start, max="+", count=count)
        return [_frame(job_id, *entry) for entry in entries]

    def _key(self, job_id: str) -> str:
        return shard_key(self._queue.shard_of(job_id), f"t:{job_id}")


class Backlog:
    """What the live channel has for one follower; `missed` says that the log must be read, `over` that all is said."""

    __slots__ = ("_silent_since_s", "_ticked", "_timer", "frames", "missed", "over", "ready")

    def __init__(self) -> None:
        self.frames: deque[Frame] = deque()
        self.ready = asyncio.Event()
        self.missed = False
        self.over = False
        self._silent_since_s = 0.0
        self._ticked = False
        self._timer: asyncio.TimerHandle | None = None

    def push(self, frame: Frame) -> None:
        if len(self.frames) >= MAX_BACKLOG_FRAMES:
            self.frames.clear()
            self.missed = True
        self.frames.append(frame)
        self.ready.set()

    def miss(self) -> None:
        self.missed = True
        self.ready.set()

    def take(self, last: FrameId) -> Frame | None:
        """The very next frame after `last`, if it is here; a gap makes the log be read, what was seen is dropped."""
        while self.frames and not self.missed:
            frame = self.frames.popleft()
            if _follows(frame.id, last):
                return frame
            self.missed = not _before_or_at(frame.id, last)
        return None

    async def wait(self, tick_s: float) -> bool:
        """Wait for something to read; False after `tick_s` of silence.

        One timer serves many waits and is moved only when it fires: this is on the path of every token.
        """
        loop = asyncio.get_running_loop()
        self._silent_since_s = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(tick_s, self._tick, loop, tick_s)
        await self.ready.wait()
        ticked, self._ticked = self._ticked, False
        return not ticked

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop, tick_s: float) -> None:
        silent_s = loop.time() - self._silent_since_s
        self._timer = None
        if silent_s < tick_s:
            self._timer = loop.call_later(tick_s - silent_s, self._tick, loop, tick_s)
        elif not self.ready.is_set():
            self._ticked = True
            self.ready.set()


class TokenListener:
    """One API node's ear: a single pub/sub connection for all the jobs that its clients follow."""

    def __init__(self, redis: Redis, queue: JobQueue, node: str) -> None:
        self.node = node
        self._redis = redis
        self._queue = queue
        self._log = TokenLog(queue)
        self._glances = Glances(queue, node)
        self._followers: dict[str, set[Backlog]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen in the background; survives every Redis outage."""
        self._task = asyncio.create_task(self._listen(), name="token-listener")

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            await cancel_all([self._task])

    def expect(self, job_id: str) -> Backlog:
        """Listen for a job that is about to be submitted with this node's name: nothing of it can be missed.

        Give the backlog to `follow`, or to `forget` when the submission fails.
        """
        backlog = Backlog()
        self._followers[job_id].add(backlog)
        return backlog

    def forget(self, job_id: str, backlog: Backlog) -> None:
        """Listen no more; a job that has ended is forgotten already."""
        followers = self._followers.get(job_id, set())
        followers.discard(backlog)
        if not followers:
            self._followers.pop(job_id, None)

    async def follow(
        self, job_id: str, heard: Heard | None = None, tick_s: float = 1.0, *, expected: Backlog | None = None
    ) -> AsyncGenerator[Frame | None]:
        """Yield the job's frames after what was `heard`, in order, each once, up to and with its End.

        Yields None after each `tick_s` of silence (and then looks at the log, so that a lost message costs one tick).
        Outlives a Redis outage. Raises UnknownJob when the job's log is gone, AnswerDiverged. Ends at once when the
        End was heard. Without an `expected` backlog it begins by asking for the frames and reading the log.
        """
        heard = heard or Heard()
        backlog = expected or self.expect(job_id)
        if expected is None:
            backlog.miss()
        try:
            while not backlog.over:
                backlog.ready.clear()
                while frame := backlog.take(heard.last):
                    if news := heard.news(frame):
                        yield news
                    if isinstance(frame.body, End):
                        return
                if backlog.missed:
                    async for news in self._catch_up(job_id, backlog, heard):
                        yield news
                        if isinstance(news.body, End):
                            return
                if not backlog.over and not await backlog.wait(tick_s):
                    yield None
                    self._glances.ask(job_id, heard, backlog.miss)
        finally:
            backlog.close()
            self.forget(job_id, backlog)

    async def _catch_up(self, job_id: str, backlog: Backlog, heard: Heard) -> AsyncIterator[Frame]:
        """Read what is in the log and unheard; what the live queue holds of it is dropped as already seen."""
        try:
            state = await self._queue.listen(job_id, self.node)
            if state is None:
                raise UnknownJob(job_id)
            while frames := await self._unread(job_id, heard):
                for frame in frames:
                    if news := heard.news(frame):
                        yield news
            backlog.missed = False
            if state in TERMINAL:  # nothing is behind its End, which was heard; or the log has gone
                if heard.last == START:
                    raise UnknownJob(job_id)
                backlog.over = True
        except QueueUnavailable:
            return  # the next tick tries again

    async def _unread(self, job_id: str, heard: Heard) -> list[Frame]:
        """The log's frames behind the one heard last; from its start when it does not hold that one any more."""
        if heard.last != START:
            frames = await self._log.read(job_id, heard.last, with_it=True)
            if frames and frames[0].id == heard.last:
                return frames[1:]
            heard.rewind()
        return await self._log.read(job_id)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(f"n:{self.node}")
                    async for message in pubsub.listen():
                        if message["type"] == "message":
                            self._dispatch(message["data"])
                        else:  # subscribed, perhaps again: what was published while nobody listened is in the log
                            self._miss_all()
            except (RedisError, OSError, ValueError, TypeError) as error:
                log.warning("token channel lost, listening again", error=str(error))
                self._miss_all()
                await asyncio.sleep(0.2)

    def _dispatch(self, data: bytes) -> None:
        unpacker = msgpack.Unpacker(raw=True)
        unpacker.feed(data)
        for job_id, generation, sequence, payload in unpacker:
            name = job_id.decode()
            followers = self._followers.get(name)
            if followers:
                frame = Frame(name, FrameId(generation, sequence), decode_body(payload))
                for backlog in followers:
                    backlog.push(frame)
                if isinstance(frame.body, End):
                    del self._followers[name]

    def _miss_all(self) -> None:
        for followers in self._followers.values():
            for backlog in followers:
                backlog.miss()


def _frame(job_id: str, entry_id: bytes, fields: Mapping[bytes, bytes]) -> Frame:
    return Frame(job_id, FrameId.parse(entry_id.decode()), decode_body(fields[b"d"]))


def _follows(frame: FrameId, last: FrameId) -> bool:
    """Is `frame` the very next one after `last`? Of another generation only the log knows."""
    return frame.sequence == last.sequence + 1 and (last == START or frame.generation == last.generation)


def _before_or_at(frame: FrameId, last: FrameId) -> bool:
    return (frame.generation, frame.sequence) <= (last.generation, last.sequence)
