"""The way in: requests that arrive in one instant are read and submitted a few at a time, first come first served.

Without it they would all advance in step, and the first would be on its way to a worker only when the last has been
validated.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

PLACES = 2
"""Requests inside at once: one computes while another waits for the queue's answer."""

PATIENCE_S = 0.05
"""After this a request goes in anyway: those inside may be waiting for a queue that hangs."""


class Door:
    """A semaphore whose waiters lose their patience."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(PLACES)
        self._outside = 0
        self._nobody_outside = asyncio.Event()

    def turn(self) -> Turn:
        """One request's way through; use as a context manager."""
        return Turn(self)

    async def enter(self) -> bool:
        """Wait for a place; False when patience has ended first."""
        self._outside += 1
        self._nobody_outside.clear()
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._places.acquire()
        except TimeoutError:
            return False
        finally:
            self._outside -= 1
            if not self._outside:
                self._nobody_outside.set()

    def leave(self) -> None:
        """Give a place back."""
        self._places.release()

    async def others_first(self) -> None:
        """Wait until nobody waits outside, or until patience ends."""
        if self._outside:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await self._nobody_outside.wait()


class Turn:
    """Entered at most once, and left by `over` or at the end of the context, whichever comes first."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._inside = False

    async def begin(self) -> None:
        """Wait for a place."""
        self._inside = await self._door.enter()

    def over(self) -> None:
        """Make room for the next."""
        if self._inside:
            self._inside = False
            self._door.leave()

    async def step_aside(self) -> None:
        """The turn is over; what can wait does, until those outside have had theirs."""
        self.over()
        await self._door.others_first()

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *_error: object) -> None:
        self.over()
