"""Notices that a client has left while its request is being answered."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType

from starlette.types import Receive


class Departure:
    """Reads what follows a request's body: only its end can come. Use as an async context manager."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task: asyncio.Task[None] | None = None

    @property
    def gone(self) -> bool:
        """Has the client closed the connection?"""
        return self._task is not None and self._task.done()

    async def __aenter__(self) -> Departure:
        self._task = asyncio.create_task(self._wait())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
