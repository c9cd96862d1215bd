"""The node agent of a machine that serves one model: its process is kept alive until the agent is asked to stop.

A model that cannot be loaded the first time ends the agent with that reason.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from redis.asyncio import Redis

from scheduler.connections import command_client
from scheduler.errors import QueueUnavailable
from scheduler.models import ModelCard, ModelCatalog
from scheduler.process import announce_ready, cancel_all
from scheduler.queue import JobQueue
from scheduler.settings import WorkerSettings
from scheduler.workers import WorkerBoard
from workers.keeper import Keeper, KeeperRules
from workers.spawning import Spawner

RENEW_S = 10.0


class NodeAgent:
    """Watches the model process of this machine."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._redis: Redis = command_client(settings.redis)
        self._queue = JobQueue(self._redis, shards=settings.shards, policy=settings.queue_policy)
        self._catalog = ModelCatalog(self._redis)
        self._spawner = Spawner(keeps_spare=settings.spare_process)
        rules = KeeperRules(drain_s=settings.drain_s, progress_limit_s=settings.progress_limit_s, only_model=True)
        self._keeper = Keeper(self._spawner, self._queue, rules, {}, self._changed)
        self._announced = False

    async def run(self, stop: asyncio.Event) -> int:
        """Keep the model process alive until asked to stop; return the exit code."""
        renewing = asyncio.create_task(self._renew_card())
        end = await self._keeper.live(stop)
        await cancel_all([renewing])
        await self._spawner.close()
        await self._leave()
        return end.code

    def _changed(self, keeper: Keeper) -> None:
        if keeper.facts and not self._announced:
            self._announced = True
            announce_ready(role="worker", **{key: keeper.facts[key] for key in ("model", "blas", "engine")})

    async def _renew_card(self) -> None:
        """Keep the model visible while its process is being started again."""
        while True:
            await asyncio.sleep(RENEW_S)
            if self._keeper.card is not None:
                with suppress(QueueUnavailable):
                    await self._catalog.renew(self._keeper.card)

    async def _leave(self) -> None:
        card = self._keeper.card
        with suppress(QueueUnavailable):
            if card is not None and not await self._others_serve(card):
                await self._catalog.withdraw(card.name)
        await self._redis.aclose()

    async def _others_serve(self, card: ModelCard) -> bool:
        live = set(await self._queue.live_workers())
        return any(row["model"] == card.name and row["worker"] in live for row in await WorkerBoard(self._redis).list())
