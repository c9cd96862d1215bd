"""A limit on each of many short waits for the price of one timer: a stream has a wait for every token."""

from __future__ import annotations

import asyncio
from types import TracebackType

LOOKS = 4
"""How often the timer looks within the limit: a wait is ended at most a quarter of the limit late."""


class Patience:
    """`async with Patience(60) as patience:` and in it, around each wait, `with patience:`.

    Raises TimeoutError out of the outer block when one wait has lasted `limit_s`.
    """

    __slots__ = ("_limit_s", "_loop", "_timeout", "_timer", "_waiting_since_s")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._waiting_since_s: float | None = None

    def __enter__(self) -> None:
        self._waiting_since_s = self._loop.time()

    def __exit__(self, *_error: object) -> None:
        self._waiting_since_s = None

    async def __aenter__(self) -> Patience:
        await self._timeout.__aenter__()
        self._look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _look(self) -> None:
        now_s = self._loop.time()
        if self._waiting_since_s is not None and now_s - self._waiting_since_s >= self._limit_s:
            self._timeout.reschedule(now_s)
        else:
            self._timer = self._loop.call_later(self._limit_s / LOOKS, self._look)
