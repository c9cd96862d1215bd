"""The routing rules as this node knows them: followed in SQL, kept while SQL is down."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from scheduler.errors import InvalidRule, RecordUnavailable, UnknownRules
from scheduler.routing.choice import RuleSet
from scheduler.rule_record import RuleRecord

log = structlog.get_logger()

REFRESH_S = 0.5
"""A change is to reach every node within a second."""


class RuleBook:
    """`current` is always there: no rules, until SQL has answered once."""

    def __init__(self, record: RuleRecord) -> None:
        self.record = record
        self.current = RuleSet()
        self.reachable = True
        self._stopped = asyncio.Event()

    async def refresh(self) -> None:
        """Follow the newest version; keep the last one when SQL does not answer or the rules make no sense."""
        try:
            if await self.record.newest() != self.current.version:
                self.current = await self.record.rules()
                log.info("routing rules", version=self.current.version, rules=len(self.current.rules))
        except (RecordUnavailable, InvalidRule, UnknownRules) as error:
            if self.reachable:
                log.warning("routing rules cannot be read, keeping the last ones", error=str(error))
            self.reachable = False
            return
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
