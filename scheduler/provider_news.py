"""Telling provider workers what the record says of providers: at once by whoever changes it, and again and again."""

from __future__ import annotations

import asyncio

import structlog

from scheduler.errors import QueueUnavailable, RecordUnavailable
from scheduler.provider_board import ProviderBoard, newest_of
from scheduler.provider_store import ProviderStore

log = structlog.get_logger()

PERIOD_S = 1.0


class ProviderNews:
    """Brings the board up to date with the record."""

    def __init__(self, board: ProviderBoard, store: ProviderStore) -> None:
        self._board = board
        self._store = store

    async def tell(self) -> bool:
        """Was there anything new? Also where Redis has forgotten it. Raises QueueUnavailable, RecordUnavailable."""
        newest, (known, _) = await self._store.newest(), await self._board.read()
        if newest == known:
            return False
        providers = await self._store.all()
        await self._board.publish(providers)
        log.info("providers", version=newest_of(providers), providers=len(providers))
        return True

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.tell()
            except (QueueUnavailable, RecordUnavailable) as error:
                log.warning("news of providers wait", error=str(error))
            await asyncio.sleep(PERIOD_S)
