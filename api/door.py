"""The way in: requests that arrive in one instant are read and submitted a few at a time, first come first served.

Without it they would all advance in step, and the first would be on its way to a worker only when the last has been
validated.
"""

from __future__ import annotations

import asyncio

PLACES = 2
"""Requests inside at once: one computes while another waits for the queue's answer."""

PATIENCE_S = 0.05
"""After this a request goes in anyway: those inside may be waiting for a queue that hangs."""


class Door:
    """A semaphore whose waiters lose their patience."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(PLACES)

    def turn(self) -> Turn:
        """One request's way through; use as a context manager."""
        return Turn(self._places)


class Turn:
    """Entered at most once, and left by `over` or at the end of the context, whichever comes first."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._inside = False

    async def begin(self) -> None:
        """Wait for a place."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._places.acquire()
        except TimeoutError:
            return
        self._inside = True

    def over(self) -> None:
        """Make room for the next."""
        if self._inside:
            self._inside = False
            self._places.release()

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *_error: object) -> None:
        self.over()
