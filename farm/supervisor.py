"""Starts the children of `serve` (what others need first, the rest side by side), keeps them, stops them in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Any

from farm.children import Child, Output, Role

Ready = dict[str, dict[str, Any]]


class Supervisor:
    """`first` is ready before `others` start; at the end `others` stop one after the other, then `first`.

    SIGINT, SIGTERM and SIGHUP end `run`; a second one shortens every grace time.
    """

    def __init__(
        self,
        *,
        first: Sequence[Role],
        others: Sequence[Role],
        output: Output,
        on_ready: Callable[[Ready, dict[str, Child]], None],
    ) -> None:
        self._first = first
        self._others = others
        self._output = output
        self._on_ready = on_ready
        self._children: dict[str, Child] = {}
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Run until a signal asks to stop. Raises ChildFailed when a child does not start; nothing is left behind."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop)
        try:
            ready = await self._start(self._first)
            ready |= await self._start(self._others)
            if not self._stop.is_set():
                self._on_ready(ready, self._children)
            await self._stop.wait()
        finally:
            for role in (*self._others, *self._first):
                if role.name in self._children:
                    await self._children[role.name].stop(self._hurry)

    def stop(self) -> None:
        """Ask for the end; asked again, hurry."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _start(self, roles: Sequence[Role]) -> Ready:
        """Start them side by side and wait until all are ready (or the end is asked for)."""
        if self._stop.is_set():
            return {}
        children = {role.name: Child(role, self._output) for role in roles}
        self._children |= children
        for child in children.values():
            child.start()
        all_ready = asyncio.gather(*(child.ready for child in children.values()))
        stopping = asyncio.ensure_future(self._stop.wait())
        either: set[asyncio.Future[Any]] = {all_ready, stopping}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not all_ready.done():
            all_ready.cancel()
            return {}
        return dict(zip(children, all_ready.result(), strict=True))  # raises ChildFailed
