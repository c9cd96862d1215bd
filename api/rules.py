"""The routing rules as this node knows them: read from SQL every second, kept while SQL is down."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from scheduler.errors import InvalidRule, RecordUnavailable
from scheduler.routing import RuleSet
from scheduler.store import Store

log = structlog.get_logger()

REFRESH_S = 1.0


class RuleBook:
    """`current` is always there: no rules, until SQL has answered once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.current = RuleSet()
        self.reachable = True
        self._stopped = asyncio.Event()

    async def refresh(self) -> None:
        """Read the newest version once; keep the last one when SQL does not answer or the rules make no sense."""
        try:
            newest = await self._store.rules()
        except (RecordUnavailable, InvalidRule) as error:
            if self.reachable:
                log.warning("routing rules cannot be read, keeping the last ones", error=str(error))
            self.reachable = False
            return
        if newest.version != self.current.version:
            log.info("routing rules", version=newest.version, rules=len(newest.rules))
        self.current = newest
        self.reachable = True

    async def run(self) -> None:
        """Refresh until `stop`."""
        while not self._stopped.is_set():
            await self.refresh()
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._stopped.wait()

    def stop(self) -> None:
        """Let `run` return, after the query that it may be in."""
        self._stopped.set()
