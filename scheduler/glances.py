"""A look at the logs of streams that are silent: all of a node's at once, so that thousands of them cost a few calls.

Pub/sub may lose a message, and Redis may forget who listens, or the job; the follower that is told so reads the log.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

from scheduler.errors import QueueUnavailable
from scheduler.heard import Heard
from scheduler.outages import redis_errors
from scheduler.queue import JobQueue

GATHER_S = 0.05
"""Those who ask within this time are answered together."""

AT_ONCE = 256
"""Jobs per call: a script must not hold up the others."""


class Glances:
    """Belongs to one node's listener."""

    def __init__(self, queue: JobQueue, node: str) -> None:
        self._queue = queue
        self._node = node
        self._asked: dict[str, list[tuple[Heard, Callable[[], None]]]] = defaultdict(list)
        self._answering: asyncio.Task[None] | None = None

    def ask(self, job_id: str, heard: Heard, must_look: Callable[[], None]) -> None:
        """Call `must_look` soon, if there is more to a job than was heard; not while Redis is away: ask again then."""
        self._asked[job_id].append((heard, must_look))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer(), name="glances")

    async def _answer(self) -> None:
        while self._asked:
            await asyncio.sleep(GATHER_S)
            asked, self._asked = self._asked, defaultdict(list)
            by_shard: dict[int, list[tuple[str, Heard, Callable[[], None]]]] = defaultdict(list)
            for job_id, followers in asked.items():
                by_shard[self._queue.shard_of(job_id)] += [(job_id, *follower) for follower in followers]
            for shard, followers_there in by_shard.items():
                for start in range(0, len(followers_there), AT_ONCE):
                    await self._look(shard, followers_there[start : start + AT_ONCE])

    async def _look(self, shard: int, followers: list[tuple[str, Heard, Callable[[], None]]]) -> None:
        known = [heard.last for _, heard, _ in followers]
        args: list[str | int] = [self._node]
        for (job_id, _, _), last in zip(followers, known, strict=True):
            args += [job_id, last.sequence]
        try:
            async with redis_errors():
                places = await self._queue.run("glance", shard, *args)
        except QueueUnavailable:
            return
        for place in places:
            _, heard, must_look = followers[place - 1]
            if heard.last == known[place - 1]:  # else it has come meanwhile
                must_look()
