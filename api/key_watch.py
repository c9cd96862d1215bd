"""Keeps this process's key ring up to date: what has changed is read from SQL twice a second."""

from __future__ import annotations

import asyncio

import structlog

from scheduler.errors import PepperUnusable, RecordUnavailable
from scheduler.key_ring import KeyRing
from scheduler.key_store import KeyStore
from scheduler.pepper import Pepper

log = structlog.get_logger()

REFRESH_S = 0.4


class KeyWatch:
    """While SQL is down the ring stays as it is."""

    def __init__(self, store: KeyStore, pepper: Pepper, ring: KeyRing) -> None:
        self._store = store
        self._pepper = pepper
        self._ring = ring
        self._told = ""

    async def refresh(self) -> None:
        """Learn what has changed, now."""
        try:
            pepper, trouble = self._pepper.read(), ""
        except PepperUnusable as error:
            pepper, trouble = None, str(error)
        try:
            self._ring.learn(await self._store.changed_since(self._ring.version), pepper)
        except RecordUnavailable as error:
            self._ring.suspect(has_pepper=pepper is not None or bool(trouble))
            trouble = trouble or str(error)
        else:
            trouble = trouble if self._ring.is_required else ""
        strangers = self._ring.strangers
        if strangers and not trouble:
            trouble = f"made with another pepper than this node's: {', '.join(strangers)}"
        self._tell(trouble)

    async def run(self) -> None:
        """Refresh for ever."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)

    def _tell(self, trouble: str) -> None:
        """Once, not twice a second."""
        if trouble and trouble != self._told:
            log.error("API keys", trouble=trouble)
        self._told = trouble
