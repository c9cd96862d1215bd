"""This API node: its clients of Redis and SQL and what it keeps in memory, opened and closed with the process."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from redis.asyncio import Redis

from api.drain import Drain
from api.formats import PromptFormats
from api.images import ImageSource
from api.key_watch import KeyWatch
from api.metrics import Metrics
from api.rules import RuleBook
from scheduler.admission import Admission
from scheduler.agents import AgentBoard, ModelPlaces
from scheduler.batches.records import Batches
from scheduler.connections import blocking_client, command_client
from scheduler.database import open_database
from scheduler.files import FileStore
from scheduler.key_ring import KeyRing
from scheduler.key_store import KeyStore
from scheduler.limits import Limiter
from scheduler.models import ModelCatalog
from scheduler.pepper import Pepper
from scheduler.process import cancel_all
from scheduler.provider_board import ProviderBoard
from scheduler.provider_news import ProviderNews
from scheduler.provider_store import ProviderStore
from scheduler.queue import JobQueue
from scheduler.rule_record import RuleRecord
from scheduler.settings import ApiSettings
from scheduler.store import Store
from scheduler.tokens import TokenListener, TokenLog
from scheduler.told import Told
from scheduler.turns import Turns
from scheduler.vault import Vault
from scheduler.workers import WorkerBoard


@dataclass(slots=True)
class Node:
    """What endpoints work with."""

    name: str
    settings: ApiSettings
    redis: Redis
    queue: JobQueue
    limiter: Limiter
    log: TokenLog
    listener: TokenListener
    catalog: ModelCatalog
    formats: PromptFormats
    store: Store
    told: Told
    turns: Turns
    files: FileStore
    batches: Batches
    rules: RuleBook
    admission: Admission
    keys: KeyStore
    key_watch: KeyWatch
    providers: ProviderStore
    provider_news: ProviderNews
    board: WorkerBoard
    places: ModelPlaces
    drain: Drain
    metrics: Metrics
    images: ImageSource
    _errands: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, errand: Coroutine[Any, Any, None]) -> None:
        """Run something that must survive the request that asked for it."""
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def finish_errands(self, timeout_s: float = 2.0) -> None:
        """Wait a moment for what `spawn` started."""
        if self._errands:
            await asyncio.wait(self._errands, timeout=timeout_s)


@asynccontextmanager
async def open_node(settings: ApiSettings, metrics: Metrics, drain: Drain, ring: KeyRing) -> AsyncIterator[Node]:
    """Open all clients (lazily: neither Redis nor SQL need to answer now) and close them at the end.

    `ring` is kept up to date meanwhile.
    """
    redis, blocking = command_client(settings.redis), blocking_client(settings.redis)
    engine = open_database(settings.database)
    queue = JobQueue(redis, shards=settings.shards, policy=settings.queue_policy)
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}".replace(",", "_")
    catalog, store, pepper = ModelCatalog(redis), Store(engine), Pepper(settings)
    keys, providers = KeyStore(engine, pepper), ProviderStore(engine, Vault(settings))
    node = Node(
        name=name,
        settings=settings,
        redis=redis,
        queue=queue,
        limiter=Limiter(redis, queue),
        log=TokenLog(queue),
        listener=TokenListener(blocking, queue, name),
        catalog=catalog,
        formats=PromptFormats(catalog),
        store=store,
        told=Told(queue, store),
        turns=Turns(engine),
        files=FileStore(engine, settings.files_path),
        batches=Batches(engine),
        rules=RuleBook(RuleRecord(engine)),
        admission=admission_of(settings, ring),
        keys=keys,
        key_watch=KeyWatch(keys, pepper, ring),
        providers=providers,
        provider_news=ProviderNews(ProviderBoard(redis), providers),
        board=WorkerBoard(redis),
        places=ModelPlaces(AgentBoard(redis)),
        drain=drain,
        metrics=metrics,
        images=ImageSource(remote=settings.remote_images, trusted=settings.trusted_image_hosts),
    )
    await node.key_watch.refresh()
    await node.listener.start()
    refreshing = asyncio.create_task(node.rules.run(), name="rules")
    watching = [
        asyncio.create_task(catalog.keep_fresh(), name="model-cards"),
        asyncio.create_task(node.told.run(), name="told-ends"),
        asyncio.create_task(node.key_watch.run(), name="keys"),
        asyncio.create_task(node.places.keep_fresh(), name="model-places"),
    ]
    try:
        yield node
    finally:
        node.rules.stop()
        await asyncio.wait([refreshing], timeout=2.0)
        refreshing.cancel()
        await cancel_all(watching)
        await node.finish_errands()
        await node.listener.close()
        await engine.dispose()
        await blocking.aclose()
        await redis.aclose()


async def current_node(request: Request) -> Node:
    """The node that serves a request."""
    node: Node = request.app.state.node
    return node


CurrentNode = Annotated[Node, Depends(current_node)]


def admission_of(settings: ApiSettings, ring: KeyRing) -> Admission:
    """The key check, and the limits, that these settings ask for."""
    never_open = settings.is_public and not settings.insecure
    return Admission(settings.own_key, settings.limits, ring, never_open=never_open)
