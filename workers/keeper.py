"""Keeps one model's process alive: starts it, hears it, kills it when it hangs, starts it again when it dies, stops it.

A dead process's jobs are put back at once (its lease need not run out first). One that dies again and again is started
with growing delays (restarts.py); one that makes no progress is killed (pulse.py).
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgpack
import orjson
import structlog

from scheduler.errors import QueueUnavailable
from scheduler.models import ModelCard
from scheduler.process import EXIT_MODEL, cancel_all
from scheduler.queue import JobQueue
from workers.pulse import PULSE, Watch
from workers.restarts import Restarts
from workers.spawning import Child, Spawner
from workers.words import HOLDS, LOADING, MEMORY, READY, REFUSED

log = structlog.get_logger()

WATCH_PERIOD_S = 0.25
STACKS_S = 20.0
"""For a hung process to write its stacks and die of that, however busy the machine is."""

SLACK_S = 15.0
"""More than its drain time is given to a process that was asked to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperRules:
    """`only_model`: it is what this agent is for. It must load the first time, and is never given up after that."""

    drain_s: float
    progress_limit_s: float
    only_model: bool


@dataclass(frozen=True, slots=True)
class End:
    """Why there is no process any more: its exit code, and the reason where the model was given up."""

    code: int
    reason: str = ""


class Keeper:
    """What is known of the process is in the attributes; `changed` is called after every change."""

    def __init__(
        self,
        spawner: Spawner,
        queue: JobQueue,
        rules: KeeperRules,
        variables: Mapping[str, str],
        changed: Callable[[Keeper], None],
    ) -> None:
        self._spawner = spawner
        self._queue = queue
        self._rules = rules
        self._variables = variables
        self._changed = changed
        self._child: Child | None = None
        self._refusal = ""
        self.facts: dict[str, Any] = {}  # of the READY line
        self.card: ModelCard | None = None
        self.ready_s: float | None = None  # since when it serves; None: it does not
        self.used_s = time.monotonic()
        self.jobs = 0
        self.keep_alive_s: float | None = None  # as the last job that said so wants it
        self.progress = 0.0  # of loading, from 0 to 1
        self.memory_bytes = 0  # that the process takes, once it is loaded
        self.deaths = 0

    @property
    def pid(self) -> int | None:
        """Of the process that lives now."""
        child = self._child
        return None if child is None or child.process.returncode is not None else child.process.pid

    async def live(self, stop: asyncio.Event) -> End:
        """Keep the process alive until asked to stop, or until the model is given up."""
        stopping = asyncio.create_task(stop.wait())
        restarts = Restarts()
        try:
            while True:
                child = asyncio.create_task(self._run_child())
                await asyncio.wait([child, stopping], return_when=asyncio.FIRST_COMPLETED)
                if stop.is_set():
                    return End(await self._stop_child(child))
                code, served_s = child.result(), self._served_s()
                self._gone()
                delay_s = restarts.delay_s(served_s)
                reason = self._hopeless(code, restarts)
                if reason:
                    return End(code, reason)
                log.error("model process died, starting it again", exit_code=code, delay_s=delay_s)
                self.deaths += 1
                self._changed(self)
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(stopping), delay_s)
                    return End(0)
        finally:
            await cancel_all([stopping])

    def _served_s(self) -> float:
        return 0.0 if self.ready_s is None else max(1e-6, time.monotonic() - self.ready_s)

    def _gone(self) -> None:
        self.ready_s, self.jobs, self.progress = None, 0, 0.0

    def _hopeless(self, code: int, restarts: Restarts) -> str:
        """Why not to start it again; empty: start it."""
        if code == EXIT_MODEL:
            return self._refusal or "it cannot be loaded"
        if self._rules.only_model:
            return "" if restarts.was_ever_ready else f"its process ended with code {code}"
        return restarts.hopeless and f"{restarts.hopeless} (the last time with exit code {code})"

    async def _run_child(self) -> int:
        self._child = child = await self._spawner.start(self._variables)
        assert child.process.stdout is not None
        watch = Watch(self._rules.progress_limit_s)
        watching = asyncio.create_task(self._watch(child.process, watch))
        async for line in child.process.stdout:
            if line.startswith(PULSE):
                watch.heard(line, time.monotonic())
            elif self._hear(line):
                self._changed(self)
            if line.startswith(READY):
                await self._spawner.prepare()
        code = await child.process.wait()
        await cancel_all([watching])
        await self._reap(child.base)
        return code

    def _hear(self, line: bytes) -> bool:
        """Take in what the process says; False for a line that is nothing to us."""
        if line.startswith(READY):
            self.facts = orjson.loads(line.removeprefix(READY))
            self.card = ModelCard.decode(msgpack.packb(self.facts["card"]))
            self.ready_s = self.used_s = time.monotonic()
        elif line.startswith(HOLDS):
            self.jobs, keep_alive_s = orjson.loads(line.removeprefix(HOLDS))
            self.used_s = time.monotonic()
            self.keep_alive_s = self.keep_alive_s if keep_alive_s is None else keep_alive_s
        elif line.startswith(LOADING):
            done_bytes, total_bytes = orjson.loads(line.removeprefix(LOADING))
            self.progress = done_bytes / max(1, total_bytes)
        elif line.startswith(MEMORY):
            self.memory_bytes = orjson.loads(line.removeprefix(MEMORY))
        elif line.startswith(REFUSED):
            self._refusal = orjson.loads(line.removeprefix(REFUSED))
        else:
            return False
        return True

    async def _watch(self, child: asyncio.subprocess.Process, watch: Watch) -> None:
        """End a child that makes no progress, with its threads' stacks in the log where it can still write them."""
        reason = ""
        while not reason:
            await asyncio.sleep(WATCH_PERIOD_S)
            reason = watch.verdict(time.monotonic())
        log.error("killing the model process", reason=reason, pid=child.pid)
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGABRT)
            child.send_signal(signal.SIGCONT)  # a stopped process can die only when it runs
            with suppress(TimeoutError):
                async with asyncio.timeout(STACKS_S):
                    await child.wait()
            child.kill()

    async def _stop_child(self, running: asyncio.Task[int]) -> int:
        """SIGTERM, and SIGKILL to one that does not end in time. A process that is just being started is waited for."""
        while self.pid is None and not running.done():
            await asyncio.wait([running], timeout=0.01)
        assert self._child is not None
        with suppress(ProcessLookupError):
            self._child.process.terminate()
        try:
            return await asyncio.wait_for(asyncio.shield(running), self._rules.drain_s + SLACK_S)
        except TimeoutError:
            self._child.process.kill()
            return await running

    async def _reap(self, base: str) -> None:
        """Put back what the dead child held; while Redis is away, the lease's end will do it."""
        with suppress(QueueUnavailable):
            for worker in await self._queue.leases(base):
                for shard in range(self._queue.shards):
                    while await self._queue.reap(shard, worker=worker):
                        pass
