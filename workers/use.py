"""When a model is in use: told to whoever decides about its place in memory, at each beginning and end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Use:
    """`tell` hears how many jobs are in hand and, where the job that has come says so, how long to keep the model."""

    def __init__(self, tell: Callable[[int, float | None], None]) -> None:
        self._tell = tell
        self._over = asyncio.Event()
        self._over.set()

    def began(self, jobs: int, keep_alive_s: float | None) -> None:
        """A job was taken."""
        if self._over.is_set() or keep_alive_s is not None:
            self._tell(jobs, keep_alive_s)
        self._over.clear()

    def ended(self) -> None:
        """No job is in hand any more."""
        if not self._over.is_set():
            self._tell(0, None)
        self._over.set()

    async def over(self) -> None:
        """Wait until no job is in hand."""
        await self._over.wait()
