"""A worker's lease: renewed from a thread and a connection of its own, so that a long step never loses it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from scheduler.connections import command_client
from scheduler.errors import QueueUnavailable
from scheduler.queue import Heartbeat, JobQueue
from scheduler.settings import FarmSettings

log = structlog.get_logger()


class Lease:
    """Keeps `name` alive in Redis. Callbacks come from the lease's thread.

    A lost lease gets a new name (`<base>.<n>`), because the reaper may still be busy with the old one.
    """

    def __init__(
        self,
        settings: FarmSettings,
        base: str,
        *,
        held: Callable[[], Sequence[str]],
        on_heartbeat: Callable[[Heartbeat], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._base = base
        self._count = 0
        self._held = held
        self._on_heartbeat = on_heartbeat
        self._on_lost = on_lost
        self._stop = threading.Event()
        self._registered = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="lease", daemon=True)

    @property
    def base(self) -> str:
        """The part of the name that stays."""
        return self._base

    @property
    def name(self) -> str:
        """The worker's name under its current lease."""
        return f"{self._base}.{self._count}"

    def start(self) -> None:
        """Begin; `wait_registered` says when the lease exists."""
        self._thread.start()

    async def wait_registered(self, stop: asyncio.Event) -> bool:
        """Return once Redis knows the current name; False: `stop` came first."""
        while not stop.is_set() and not self._registered.is_set():
            await asyncio.to_thread(self._registered.wait, 0.5)
        return self._registered.is_set()

    def stop(self) -> None:
        """End the thread; the lease itself runs out or is removed by the reaper."""
        self._stop.set()
        self._thread.join(timeout=5)

    async def _run(self) -> None:
        redis = command_client(self._settings.redis)
        queue = JobQueue(redis, shards=self._settings.shards, policy=self._settings.queue_policy)
        period_s = self._settings.lease_s / 4
        while not self._stop.is_set():
            with suppress(QueueUnavailable):  # the next beat tries again; the lease outlives a short outage
                await self._beat(queue)
            await asyncio.to_thread(self._stop.wait, period_s if self._registered.is_set() else 0.2)
        await redis.aclose()

    async def _beat(self, queue: JobQueue) -> None:
        register = not self._registered.is_set()
        held = self._held()
        for shard in range(queue.shards):
            mine = [job_id for job_id in held if job_id.startswith(f"{shard}-")]
            beat = await queue.heartbeat(self.name, mine, register=register, shard=shard)
            if not beat.alive:
                log.error("lease lost", worker=self.name)
                self._registered.clear()
                self._count += 1
                self._on_lost()
                return
            self._on_heartbeat(beat)
        self._registered.set()
