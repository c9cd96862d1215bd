"""The node agent: one child process per model, started again when it dies, stopped in order.

A dead child's jobs are put back at once (its lease need not run out first). A child that dies again and again is
started with growing delays (workers/restarts.py); one that cannot load its model ends the agent with that reason; one
that makes no progress is killed (workers/pulse.py).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import msgpack
import orjson
import structlog
from redis.asyncio import Redis

from scheduler.connections import command_client
from scheduler.errors import QueueUnavailable
from scheduler.models import ModelCard, ModelCatalog
from scheduler.process import EXIT_MODEL, announce_ready, cancel_all
from scheduler.queue import JobQueue
from scheduler.settings import WorkerSettings
from scheduler.workers import WorkerBoard
from workers.pulse import PULSE, STACKS, Watch
from workers.restarts import Restarts
from workers.spawning import Child, Spawner

log = structlog.get_logger()

WATCH_PERIOD_S = 0.25
STACKS_S = 0.5
"""For a hung process to write its stacks."""


class NodeAgent:
    """Watches the model process of this machine."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._redis: Redis = command_client(settings.redis)
        self._queue = JobQueue(self._redis, shards=settings.shards, policy=settings.queue_policy)
        self._catalog = ModelCatalog(self._redis)
        self._spawner = Spawner(keeps_spare=settings.spare_process)
        self._child: Child | None = None
        self._ready_s: float | None = None
        self._card: ModelCard | None = None
        self._announced = False

    async def run(self, stop: asyncio.Event) -> int:
        """Keep the model process alive until asked to stop; return the exit code."""
        stopping = asyncio.create_task(stop.wait())
        renewing = asyncio.create_task(self._renew_card())
        restarts = Restarts()
        code = 0
        while not stop.is_set():
            child = asyncio.create_task(self._run_child())
            await asyncio.wait([child, stopping], return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                code = await self._stop_child(child)
                break
            code = child.result()
            if code == EXIT_MODEL or not self._announced:
                break
            delay_s = restarts.delay_s(0.0 if self._ready_s is None else time.monotonic() - self._ready_s)
            log.error("model process died, starting it again", exit_code=code, delay_s=delay_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(stopping), delay_s)
        await cancel_all([stopping, renewing])
        await self._spawner.close()
        await self._leave()
        return code

    async def _run_child(self) -> int:
        self._ready_s = None
        self._child = child = await self._spawner.start()
        assert child.process.stdout is not None
        watch = Watch(self._settings.progress_limit_s)
        watching = asyncio.create_task(self._watch(child.process, watch))
        async for line in child.process.stdout:
            if line.startswith(b"READY "):
                self._ready(orjson.loads(line.removeprefix(b"READY ")))
                await self._spawner.prepare()
            elif line.startswith(PULSE):
                watch.heard(line, time.monotonic())
        code = await child.process.wait()
        await cancel_all([watching])
        await self._reap(child.base)
        return code

    async def _watch(self, child: asyncio.subprocess.Process, watch: Watch) -> None:
        """Kill a child that makes no progress, with its threads' stacks in the log where it can still write them."""
        reason = ""
        while not reason:
            await asyncio.sleep(WATCH_PERIOD_S)
            reason = watch.verdict(time.monotonic())
        log.error("killing the model process", reason=reason, pid=child.pid)
        with suppress(ProcessLookupError):
            child.send_signal(STACKS)
            await asyncio.sleep(STACKS_S)
            child.kill()

    def _ready(self, facts: dict[str, Any]) -> None:
        self._ready_s = time.monotonic()
        self._card = ModelCard.decode(msgpack.packb(facts["card"]))
        if not self._announced:
            self._announced = True
            announce_ready(role="worker", **{key: facts[key] for key in ("model", "blas", "engine")})

    async def _stop_child(self, child: asyncio.Task[int]) -> int:
        assert self._child is not None
        with suppress(ProcessLookupError):
            self._child.process.terminate()
        try:
            return await asyncio.wait_for(asyncio.shield(child), self._settings.drain_s + 15)
        except TimeoutError:
            self._child.process.kill()
            return await child

    async def _reap(self, base: str) -> None:
        """Put back what the dead child held; while Redis is away, the lease's end will do it."""
        with suppress(QueueUnavailable):
            for worker in await self._queue.leases(base):
                for shard in range(self._queue.shards):
                    while await self._queue.reap(shard, worker=worker):
                        pass

    async def _renew_card(self) -> None:
        """Keep the model visible while its process is being started again."""
        while True:
            await asyncio.sleep(10)
            if self._card is not None:
                with suppress(QueueUnavailable):
                    await self._catalog.renew(self._card)

    async def _leave(self) -> None:
        with suppress(QueueUnavailable):
            if self._card is not None and not await self._others_serve(self._card.name):
                await self._catalog.withdraw(self._card.name)
        await self._redis.aclose()

    async def _others_serve(self, model: str) -> bool:
        live = set(await self._queue.live_workers())
        return any(row["model"] == model and row["worker"] in live for row in await WorkerBoard(self._redis).list())
