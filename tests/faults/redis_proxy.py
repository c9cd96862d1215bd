"""A TCP proxy in front of a Redis: it can lose a reply after the command was carried out, be slow, or fall silent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import hiredis

from tests.waiting import PATIENCE_S

T = TypeVar("T")


class RedisProxy:
    """Passes bytes between its port and a Redis socket, in a thread of its own.

    `commands` counts those of all connections. `latency_s` delays each way. Close it in the end.
    """

    def __init__(self, target: Path) -> None:
        self.commands = 0
        self.latency_s = 0.0
        self._target = target
        self._lost: range = range(0)
        self._every = 0
        self._links: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="redis-proxy", daemon=True)
        self._thread.start()
        self._open = self._call(_event(is_set=True))
        self._never = self._call(_event(is_set=False))
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def lose_replies(self, first: int, count: int = 1) -> None:
        """The `first` command from now, and `count` in all, get no reply but a closed connection."""
        self._lost = range(self.commands + first, self.commands + first + count)

    def lose_every(self, nth: int) -> None:
        """Every `nth` command gets no reply but a closed connection; 0: none."""
        self._every = nth

    @contextmanager
    def silence(self) -> Iterator[None]:
        """A partition: connections stay open and carry nothing, until it is healed."""
        self._loop.call_soon_threadsafe(self._open.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._open.set)

    def close(self) -> None:
        """Cut all connections and end."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _close(self) -> None:
        self._server.close()
        for link in tuple(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        with suppress(OSError, asyncio.CancelledError):
            await self._link(reader, writer)
        self._links.discard(task)
        writer.close()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_unix_connection(str(self._target))
        loses = asyncio.Event()
        ways = [
            asyncio.ensure_future(self._requests(reader, to_redis, loses)),
            asyncio.ensure_future(self._replies(from_redis, writer, loses)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_redis.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, loses: asyncio.Event) -> None:
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            await self._pass_through()
            parser.feed(data)
            while parser.gets() is not False:
                self.commands += 1
                if self.commands in self._lost or (self._every and self.commands % self._every == 0):
                    loses.set()
            writer.write(data)
            await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, loses: asyncio.Event) -> None:
        while data := await reader.read(65536):
            await self._pass_through()
            if loses.is_set():  # it was carried out: nobody hears of it
                return
            writer.write(data)
            await writer.drain()

    async def _pass_through(self) -> None:
        await self._open.wait()
        if self.latency_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.latency_s):
                    await self._never.wait()


async def _event(*, is_set: bool) -> asyncio.Event:
    event = asyncio.Event()
    if is_set:
        event.set()
    return event
