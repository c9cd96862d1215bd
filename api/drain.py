"""The end of a node's service: no new requests, open answers finish within a limit, then they are ended properly."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Drain:
    """serving → draining (`begin`) → over (`end_answers`)."""

    def __init__(self) -> None:
        self._draining = False
        self._over = False
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def draining(self) -> bool:
        """Are new requests refused?"""
        return self._draining

    @property
    def over(self) -> bool:
        """Must open answers end now?"""
        return self._over

    @property
    def open_answers(self) -> int:
        """Answers that wait for tokens."""
        return self._open

    def begin(self) -> None:
        """Refuse new requests."""
        self._draining = True

    def end_answers(self) -> None:
        """Let every open answer end with an error that names the job, which goes on without this node."""
        self._draining = self._over = True

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around everything that waits for a job's tokens."""
        self._open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._open -= 1
            if self._open == 0:
                self._idle.set()

    async def idle(self, timeout_s: float) -> bool:
        """Wait until no answer is open; False when that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
