"""A farm of real processes that is hurt and comes back: each is started again when it dies, as a supervisor would.

Redis runs on a Unix socket; a power loss is kill -9 and an append-only file cut to the length it had a second before.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from redis.asyncio import Redis
from redis.exceptions import RedisError

from bench.history import Held

POWER_LOSS_S = 1.0
"""With appendfsync everysec a power loss takes about this much."""

RESTART_S = 0.2
READY_S = 180.0


class Keeper:
    """One process, kept alive; its output goes to `log`."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.environment = dict(environment)
        self.ready = asyncio.Event()
        self.facts: dict[str, Any] = {}
        self.starts = 0
        self._command = command
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._held: tuple[int, int] = (0, 0)
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Begin; returns once it is ready."""
        self._task = asyncio.create_task(self._keep())
        async with asyncio.timeout(READY_S):
            await self.ready.wait()

    async def _keep(self) -> None:
        while not self._stopping:
            self.starts += 1
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env=self.environment,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                )
                assert self._process.stdout is not None
                async for line in self._process.stdout:
                    if line.startswith(b"READY "):
                        self.facts = json.loads(line.removeprefix(b"READY "))
                        self._held = self._holds()
                        self.ready.set()
                code = await self._process.wait()
                log.write(f"-- ended with {code}\n".encode())
            self.ready.clear()
            await asyncio.sleep(RESTART_S)

    async def restart(self) -> None:
        """SIGTERM, and wait until it has come back."""
        async with asyncio.timeout(READY_S):
            await self.ready.wait()
            self.ready.clear()
            self.signal(signal.SIGTERM)
            await self.ready.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill_all(self) -> None:
        """kill -9 of the process and its children: the machine is gone."""
        for pid in [*self.children(), self.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def children(self) -> list[int]:
        """Processes that this one has started, the oldest first."""
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.pid).children(recursive=True)
            return [child.pid for child in sorted(found, key=psutil.Process.create_time)]
        return []

    def held(self) -> Held:
        """Files and threads at the start and now."""
        files, threads = self._holds()
        return Held(self.name, (self._held[0], files), (self._held[1], threads))

    def _holds(self) -> tuple[int, int]:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return process.num_fds(), process.num_threads()
        return 0, 0

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        self._stopping = True
        if self._task is None:
            return
        for number in (signal.SIGCONT, signal.SIGTERM):
            self.signal(number)
        done, _ = await asyncio.wait([self._task], timeout=15)
        if not done:
            self.kill_all()
            await self._task


class RedisKeeper(Keeper):
    """The queue's server. Its append-only file is watched, so that a power loss knows what to take."""

    def __init__(self, folder: Path, server: str, log: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        options = {"port": "0", "unixsocket": str(self.socket), "dir": str(folder), "appendonly": "yes", "save": ""}
        options |= {"maxmemory-policy": "noeviction", "loglevel": "warning"}
        arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
        super().__init__("redis", [server, *arguments], os.environ, log)
        self._lengths: deque[tuple[float, dict[Path, int]]] = deque(maxlen=40)
        self._losing = False

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{self.socket}"

    async def start(self) -> None:
        """Begin; returns once it answers."""
        self._task = asyncio.create_task(self._keep())
        self._watching = asyncio.create_task(self._watch())
        client: Redis = Redis.from_url(self.url)
        async with asyncio.timeout(READY_S):
            while not self.ready.is_set():
                with suppress(RedisError, OSError):
                    await client.ping()
                    self.ready.set()
                await asyncio.sleep(0.02)
        await client.aclose()

    async def stop(self) -> None:
        """Stop watching, too."""
        self._watching.cancel()
        await super().stop()

    def lose_power(self) -> None:
        """kill -9, and the last second was never on the disk."""
        before_s = time.monotonic() - POWER_LOSS_S
        kept = next((lengths for at_s, lengths in reversed(self._lengths) if at_s <= before_s), {})
        self.signal(signal.SIGKILL)
        for path, length in kept.items():
            with suppress(FileNotFoundError):
                if path.stat().st_size > length:
                    os.truncate(path, length)
        self._lengths.clear()

    async def _watch(self) -> None:
        while True:
            lengths = {}
            for path in self.folder.rglob("*.aof"):
                with suppress(FileNotFoundError):
                    lengths[path] = path.stat().st_size
            self._lengths.append((time.monotonic(), lengths))
            await asyncio.sleep(0.1)


class ChaosFarm:
    """Redis, scheduler, two API nodes and workers."""

    def __init__(self, folder: Path, server: str, database_url: str, *, workers: int, lease_s: float) -> None:
        self.folder = folder
        self.lease_s = lease_s
        self.redis = RedisKeeper(folder / "redis", server, folder / "redis.log")
        self.redis.folder.mkdir()
        self.database_url = database_url or f"sqlite+aiosqlite:///{folder / 'farm.db'}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("FARM_")}
        environment = kept | {
            "FARM_HOME": str(folder),
            "FARM_REDIS_URL": self.redis.url,
            "FARM_DATABASE_URL": self.database_url,
            "FARM_PORT": "0",
            "FARM_SUPERVISED": "1",
            "FARM_LOG_FORMAT": "json",
            "FARM_LEASE_S": str(lease_s),
            "FARM_DRAIN_S": "2",
            "FARM_MAX_CRASHES": "12",  # chaos kills the innocent, a job up to five times in a minute
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }

        def keeper(module: str, name: str) -> Keeper:
            return Keeper(name, [sys.executable, "-m", module], environment, folder / f"{name}.log")

        self.scheduler = keeper("scheduler", "scheduler")
        self.apis = [keeper("api", f"api-{index}") for index in range(2)]
        self.workers = [keeper("workers", f"worker-{index}") for index in range(workers)]

    @property
    def keepers(self) -> list[Keeper]:
        """All but Redis."""
        return [self.scheduler, *self.apis, *self.workers]

    @property
    def urls(self) -> list[str]:
        """Of the API nodes; a restarted one has the same."""
        return [str(api.facts["url"]) for api in self.apis]

    async def ready(self) -> None:
        """Wait until every process has come back."""
        async with asyncio.timeout(READY_S):
            for keeper in self.keepers:
                await keeper.ready.wait()

    def model_pids(self) -> list[int]:
        """The processes that hold models: of an agent's children the oldest, the other one is its spare."""
        children = [worker.children()[:1] for worker in self.workers if worker.ready.is_set()]
        return [pid for oldest in children for pid in oldest]


@asynccontextmanager
async def chaos_farm(
    folder: Path, server: str, database_url: str, *, workers: int, lease_s: float
) -> AsyncIterator[ChaosFarm]:
    """Start a farm and stop it at the end."""
    farm = ChaosFarm(folder, server, database_url, workers=workers, lease_s=lease_s)
    try:
        await farm.redis.start()
        await farm.scheduler.start()
        await asyncio.gather(*(keeper.start() for keeper in farm.keepers[1:]))
        for api, url in zip(farm.apis, farm.urls, strict=True):
            api.environment["FARM_PORT"] = url.rpartition(":")[2].strip("/")
        yield farm
    finally:
        await asyncio.gather(*(keeper.stop() for keeper in farm.keepers))
        await farm.redis.stop()
