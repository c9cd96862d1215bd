"""The supervisor of `serve`, with small scripts in place of the farm's processes."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from farm import ports
from farm.children import Child, ChildFailed, Output, Role
from farm.errors import CommandError
from farm.supervisor import Ready, Supervisor
from tests.waiting import PATIENCE_S

STEADY = """
import json, os, signal, sys
def note(what):
    with open("{log}", "a") as file: file.write(what + " {name}\\n")
def stop(*_):
    note("stop"); sys.exit(0)
signal.signal(signal.SIGTERM, stop)
note("start")
print("READY " + json.dumps({{"name": "{name}", "pid": os.getpid()}}), flush=True)
sys.stdin.read()
note("orphaned")
"""
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child: print('READY {{"child": %d}}' % child, flush=True)
while True: time.sleep(60)
"""
FAILING = """
import sys
print("cannot find the model in /models", file=sys.stderr)
sys.exit(7)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "order"
    path.touch()
    return path


@pytest.fixture
def role(log: Path) -> Callable[..., Role]:
    """A role that runs a script."""

    def make(name: str, script: str = STEADY, grace_s: float = PATIENCE_S) -> Role:
        code = script.format(log=log, name=name)
        return Role(name=name, argv=[sys.executable, "-S", "-c", code], grace_s=grace_s)

    return make


@pytest.fixture
def lines(log: Path) -> Callable[[], list[str]]:
    """What the scripts have noted so far."""
    return lambda: log.read_text().splitlines()


class Running:
    """A supervisor in the background."""

    def __init__(self, folder: Path, first: list[Role], others: list[Role]) -> None:
        self.ready: asyncio.Future[tuple[Ready, dict[str, Child]]] = asyncio.get_running_loop().create_future()
        self.supervisor = Supervisor(
            first=first,
            others=others,
            output=Output(folder),
            on_ready=lambda ready, children: self.ready.set_result((ready, children)),
        )
        self.task = asyncio.create_task(self.supervisor.run())


async def test_the_first_starts_alone_and_stops_last_the_others_stop_in_their_order(
    role: Callable[..., Role], lines: Callable[[], list[str]], tmp_path: Path
) -> None:
    running = Running(tmp_path, [role("valkey")], [role("api"), role("worker"), role("scheduler")])
    async with asyncio.timeout(PATIENCE_S):
        ready, _ = await running.ready
        assert {name: data["name"] for name, data in ready.items()} == {name: name for name in ready}
        running.supervisor.stop()
        await running.task
    noted = lines()
    assert noted[0] == "start valkey"
    assert set(noted[1:4]) == {"start api", "start worker", "start scheduler"}
    assert noted[4:] == ["stop api", "stop worker", "stop scheduler", "stop valkey"]


async def test_a_signal_stops_everything(
    role: Callable[..., Role], lines: Callable[[], list[str]], tmp_path: Path
) -> None:
    running = Running(tmp_path, [], [role("api")])
    async with asyncio.timeout(PATIENCE_S):
        await running.ready
        os.kill(os.getpid(), signal.SIGTERM)
        await running.task
    assert lines() == ["start api", "stop api"]


async def test_a_child_that_does_not_start_ends_all_with_its_last_words(
    role: Callable[..., Role], lines: Callable[[], list[str]], tmp_path: Path
) -> None:
    running = Running(tmp_path, [role("valkey")], [role("worker", FAILING)])
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(ChildFailed, match=r"worker did not start \(exit code 7\)") as failure:
            await running.task
    assert "cannot find the model in /models" in str(failure.value)
    assert str(tmp_path / "worker.log") in str(failure.value)
    assert lines() == ["start valkey", "stop valkey"]


async def test_a_program_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    running = Running(tmp_path, [Role(name="valkey", argv=[str(tmp_path / "missing")], grace_s=1)], [])
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(ChildFailed, match="missing: No such file"):
            await running.task


async def test_a_child_that_dies_later_is_started_again(
    role: Callable[..., Role], lines: Callable[[], list[str]], tmp_path: Path, eventually: Callable[..., None]
) -> None:
    running = Running(tmp_path, [], [role("worker")])
    async with asyncio.timeout(PATIENCE_S):
        _, children = await running.ready
        pid = children["worker"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(eventually, lambda: lines().count("start worker") == 2)
        assert children["worker"].pid != pid
        running.supervisor.stop()
        await running.task
    assert lines() == ["start worker", "start worker", "stop worker"]


async def test_what_ignores_the_stop_signal_is_killed_with_its_children(
    role: Callable[..., Role], tmp_path: Path, eventually: Callable[..., None]
) -> None:
    running = Running(tmp_path, [], [role("worker", STUBBORN, grace_s=0.2)])
    async with asyncio.timeout(PATIENCE_S):
        ready, children = await running.ready
        running.supervisor.stop()
        await running.task
        for pid in (ready["worker"]["child"], children["worker"].pid):
            await asyncio.to_thread(eventually, functools.partial(_is_gone, int(pid or 0)))


async def test_a_second_signal_shortens_the_grace_time(role: Callable[..., Role], tmp_path: Path) -> None:
    running = Running(tmp_path, [], [role("worker", STUBBORN, grace_s=600.0)])
    async with asyncio.timeout(PATIENCE_S):
        await running.ready
        running.supervisor.stop()
        running.supervisor.stop()
        await running.task


def test_a_taken_port_is_named_with_its_owner_and_an_alternative() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not ports.is_free("127.0.0.1", port)
        with pytest.raises(CommandError, match=rf"Port {port} is already in use by pid {os.getpid()} .*--port \d+"):
            ports.require_free("127.0.0.1", port)
    ports.require_free("127.0.0.1", 0)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(CommandError, match="Check --host"):
        ports.is_free("192.0.2.1", 8000)


def _is_gone(pid: int) -> bool:
    """No such process, or one that only waits to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
