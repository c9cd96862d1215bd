"""What operators ask of this machine's disk: pull a model and stop that, list, search, recommend; each as a process.

One agent for each FARM_HOME does it, whoever has its lock; the others wait for that one's end. A pull that is under way
when the agent ends stops, and goes on when it is asked for again.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from asyncio.subprocess import Process
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import orjson
import structlog
from redis.asyncio import Redis

from scheduler.agents import Errand, NodeBoard, Order, OrderDesk
from scheduler.connections import command_client
from scheduler.errors import QueueUnavailable
from scheduler.process import cancel_all
from scheduler.settings import WorkerSettings

log = structlog.get_logger()

TICK_S = 0.25
SHOW_S = 2.0
LOCK_S = 2.0
PULLS_KEPT = 20
PULLS_AT_ONCE = 2
LONGEST_LINE_BYTES = 1 << 26
MODULES = {
    Errand.PULL: "workers.gallery.pulling",
    Errand.LIST: "workers.gallery.shelf",
    Errand.SEARCH: "workers.gallery.searching",
    Errand.RECOMMEND: "workers.gallery.advising",
}


@dataclass(slots=True, kw_only=True)
class NodePull:
    """One model on its way: `state` is asking, downloading, done, failed (with `error`) or stopped."""

    model: str
    by: str
    id: str = field(default_factory=lambda: f"pull_{uuid.uuid4().hex[:16]}")
    state: str = "asking"
    done_bytes: int = 0
    total_bytes: int = 0
    folder: str | None = None
    error: str | None = None
    began_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    ended_ms: int | None = None


class GalleryDesk:
    """Takes orders and shows pulls, until it is cancelled."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._name = node_name(settings)
        self._redis: Redis = command_client(settings.redis)
        self._board = NodeBoard(self._redis)
        self._desk = OrderDesk(self._redis)
        self._pulls: dict[str, NodePull] = {}
        self._processes: dict[str, Process] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._shown_s = 0.0

    async def run(self) -> None:
        """For ever; not at all where FARM_HOME cannot be written."""
        try:
            lock = self._lock_file()
        except OSError as error:
            log.warning("no orders about this disk's models are taken", error=str(error))
            await self._redis.aclose()
            return
        try:
            is_ours = False
            while True:
                is_ours = is_ours or _taken(lock)
                with suppress(QueueUnavailable):  # an outage of the queue: orders wait, pulls go on
                    if is_ours:
                        await self._tick()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), TICK_S if is_ours else LOCK_S)
        finally:
            await self._leave()
            lock.close()

    def _lock_file(self) -> IO[bytes]:
        folder = self._settings.home_path / "run"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return (folder / "gallery.lock").open("ab")

    async def _tick(self) -> None:
        for order in await self._desk.take(self._name):
            self._begin(self._carry_out(order))
        if self._changed.is_set() or time.monotonic() - self._shown_s >= SHOW_S:
            await self._show()

    async def _show(self) -> None:
        self._changed.clear()
        figures = {
            "host": socket.gethostname(),
            "pulls": [asdict(pull) for pull in self._pulls.values()],
            "seen_ms": time.time_ns() // 1_000_000,
        }
        await self._board.publish(self._name, figures, ttl_s=self._settings.lease_s)
        self._shown_s = time.monotonic()

    def _begin(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _carry_out(self, order: Order) -> None:
        """Do it, and say what has become of it."""
        if order.action == Errand.PULL:
            answer = self._pull(order)
        elif order.action == Errand.STOP_PULL:
            answer = self._stop(order.model)
        elif order.action in MODULES:
            answer = await self._ask(Errand(order.action), order.arguments)
        else:
            answer = {"refused": f"this node does not know how to {order.action}"}
        with suppress(QueueUnavailable):  # whoever asked is told by the silence
            await self._show()
            await self._desk.answer(order, answer)

    def _pull(self, order: Order) -> dict[str, Any]:
        """The pull, which begins now; or the one that is under way already."""
        under_way = [pull for pull in self._pulls.values() if pull.ended_ms is None]
        for pull in under_way:
            if pull.model == order.model:
                return asdict(pull)
        if len(under_way) >= PULLS_AT_ONCE:
            names = " and ".join(pull.model for pull in under_way)
            return {"refused": f"this node is pulling {names}: wait for one of them, or cancel it"}
        pull = NodePull(model=order.model, by=order.by)
        ended = [other.id for other in self._pulls.values() if other.ended_ms is not None]
        for forgotten in ended[: max(0, len(ended) - PULLS_KEPT + 1)]:
            del self._pulls[forgotten]
        self._pulls[pull.id] = pull
        self._begin(self._follow(pull))
        return asdict(pull)

    async def _follow(self, pull: NodePull) -> None:
        """Run a pull to its end."""
        process = await _start(Errand.PULL, "--json", "--", pull.model)
        self._processes[pull.id] = process
        assert process.stdout is not None
        assert process.stderr is not None
        complaints = asyncio.create_task(process.stderr.read())
        try:
            if pull.state == "stopping":  # before there was anything to stop
                process.send_signal(signal.SIGTERM)
            async for line in process.stdout:
                said = orjson.loads(line)
                if pull.state != "stopping" and said["state"] != "done":  # that is said when the process has ended
                    pull.state = said["state"]
                pull.done_bytes, pull.total_bytes = said["done_bytes"], said["total_bytes"]
                pull.folder = said["folder"]
                self._changed.set()
            code = await process.wait()
        finally:
            del self._processes[pull.id]
            await _end(process)
            said_last = await complaints
        if code == 0:
            pull.state = "done"
        elif pull.state == "stopping":
            pull.state = "stopped"
        else:
            pull.state, pull.error = "failed", _complaint(said_last, code)
        pull.ended_ms = time.time_ns() // 1_000_000
        self._changed.set()
        log.info("pull ended", model=pull.model, state=pull.state, error=pull.error)

    def _stop(self, pull_id: str) -> dict[str, Any]:
        """Ask a pull to end; what has come is kept."""
        pull = self._pulls.get(pull_id)
        if pull is None:
            return {"refused": "this node has no such pull"}
        if pull.ended_ms is None:
            pull.state = "stopping"
            if process := self._processes.get(pull_id):
                process.send_signal(signal.SIGTERM)
        return asdict(pull)

    async def _ask(self, errand: Errand, arguments: tuple[str, ...]) -> dict[str, Any]:
        """What a process of the gallery answers."""
        process = await _start(errand, "--json", *arguments)
        try:
            out, complaints = await process.communicate()
        finally:
            await _end(process)
        answer: dict[str, Any] = orjson.loads(out) if out else {}
        if process.returncode != 0:
            answer["refused"] = answer.get("error") or _complaint(complaints, process.returncode)
        return answer

    async def _leave(self) -> None:
        await cancel_all(self._errands)
        with suppress(QueueUnavailable):
            await self._board.withdraw(self._name)
        await self._redis.aclose()


def node_name(settings: WorkerSettings) -> str:
    """The machine's, and of which data folder: stable over restarts."""
    digest = hashlib.sha256(os.fsencode(settings.home_path)).hexdigest()
    return f"{socket.gethostname()}-{digest[:6]}"


def _taken(lock: IO[bytes]) -> bool:
    """The kernel drops it with the process, however it ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _start(errand: Errand, *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", MODULES[errand], *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        limit=LONGEST_LINE_BYTES,
    )


async def _end(process: Process) -> None:
    """Leave no process behind."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _complaint(said: bytes, code: int | None) -> str:
    """The last line, which says why."""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("mlx-farm: ") if lines else f"its process ended with exit code {code}"
