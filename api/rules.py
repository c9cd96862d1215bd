"""The routing rules as this node knows them: read from SQL every second, kept while SQL is down."""

from __future__ import annotations

import asyncio

import structlog

from scheduler.errors import InvalidRule, RecordUnavailable
from scheduler.routing import RuleSet
from scheduler.store import Store

log = structlog.get_logger()

REFRESH_S = 1.0


class RuleBook:
    """`current` is always there; `age_s` says nothing about it: rules change by version."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.current = RuleSet()
        self.reachable = True

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
        """Refresh for ever."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)
