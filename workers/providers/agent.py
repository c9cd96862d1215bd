"""The provider worker: serves every model of every enabled provider, as the copy of the record in Redis says."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from contextlib import suppress

import structlog

from scheduler.connections import command_client
from scheduler.errors import InvalidProvider, QueueUnavailable, VaultUnusable
from scheduler.process import announce_ready
from scheduler.provider_board import ProviderBoard
from scheduler.provider_settings import ProviderWorkerSettings
from scheduler.providers import KeptProvider, check_address
from scheduler.vault import Vault
from workers.providers.serving import ProviderServing
from workers.providers.upstream import Upstream

log = structlog.get_logger()

REFRESH_S = 0.25
"""A change is to be followed within a second."""


class Serving:
    """One provider as it was at a version, with its models."""

    def __init__(self, kept: KeptProvider, upstream: Upstream, models: Sequence[ProviderServing]) -> None:
        self.version = kept.version
        self._upstream = upstream
        self._models = models

    @property
    def names(self) -> list[str]:
        """What its models are called."""
        return [model.name for model in self._models]

    @property
    def has_failed(self) -> bool:
        """Did one of them end by itself?"""
        return any(model.has_ended for model in self._models)

    async def stop(self, wanted: Container[str] = ()) -> None:
        """Let its models go, all at once; those that are still wanted are served by others from now on."""
        await asyncio.gather(*(model.stop(succeeded=model.name in wanted) for model in self._models))
        await self._upstream.close()


class ProviderAgent:
    """Owns the models of all providers."""

    def __init__(self, settings: ProviderWorkerSettings) -> None:
        self._settings = settings
        self._redis = command_client(settings.redis)
        self._board = ProviderBoard(self._redis)
        self._vault = Vault(settings)
        self._serving: dict[str, Serving] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._version = -1
        self._refused: set[tuple[str, int]] = set()  # what was said of, once

    async def run(self, stop: asyncio.Event) -> int:
        """Serve until asked to stop; return the exit code. Raises what ended a model by itself."""
        announced, reachable = False, True
        while not stop.is_set() and not self._has_failed():
            try:
                await self._follow()
                if not announced:
                    announce_ready(role="worker", model=", ".join(self._names()), engine="providers", blas="none")
                    announced = True
                reachable = True
            except QueueUnavailable as error:
                if reachable:
                    log.warning("providers cannot be read, keeping the last ones", error=str(error))
                reachable = False
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await stop.wait()
        await asyncio.gather(*(serving.stop() for serving in self._serving.values()), *self._leaving)
        await self._redis.aclose()
        return 0

    def _names(self) -> list[str]:
        return [name for serving in self._serving.values() for name in serving.names]

    def _has_failed(self) -> bool:
        return any(serving.has_failed for serving in self._serving.values())

    async def _follow(self) -> None:
        """Serve what the record says. Raises QueueUnavailable."""
        newest, providers = await self._board.read()
        if newest == self._version:
            return
        wanted = {kept.name: kept for kept in providers if kept.enabled}
        for name, serving in list(self._serving.items()):
            if name not in wanted or wanted[name].version != serving.version:
                del self._serving[name]
                self._leave(serving, wanted.get(name))
        for name, kept in wanted.items():
            if name not in self._serving:
                self._begin(kept)
        self._version = newest if wanted.keys() <= self._serving.keys() else -1

    def _begin(self, kept: KeptProvider) -> None:
        settings = self._settings
        try:
            check_address(kept.provider, settings.trusted_provider_hosts)
            upstream = Upstream(
                kept.provider, self._vault.key_of(kept.cipher, kept.name), settings.trusted_provider_hosts
            )
        except (InvalidProvider, VaultUnusable) as error:
            if (kept.name, kept.version) not in self._refused:  # a secret that is put there later is found
                log.error("provider cannot be served", provider=kept.name, error=str(error))
                self._refused.add((kept.name, kept.version))
            return
        models = [
            ProviderServing(settings, self._redis, kept.provider, model, upstream) for model in kept.provider.models
        ]
        self._serving[kept.name] = Serving(kept, upstream, models)
        log.info("serving provider", provider=kept.name, models=[model.name for model in models])

    def _leave(self, serving: Serving, successor: KeptProvider | None) -> None:
        """What it has begun goes on for a while, beside what takes its place."""
        wanted = {successor.provider.served_name(model) for model in successor.provider.models} if successor else ()
        task = asyncio.create_task(serving.stop(wanted))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
