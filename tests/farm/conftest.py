"""A whole farm of real processes on a Redis and a database of its own, for tests that talk to it as its users do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from scheduler.connections import command_client
from scheduler.queue import JobQueue
from tests.farm.streams import get
from tests.faults.patching import patched
from tests.waiting import PATIENCE_S, until

READY_S = 200


@dataclass
class Role:
    """One process of the farm; `facts` is its READY line."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.finish()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.finish()

    def finish(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end and close the pipes."""
        code = self.process.wait(timeout_s)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return code


@dataclass
class Farm:
    """Redis, database, scheduler, API nodes and a worker. `environment` is what every process gets."""

    redis: Any
    database_url: str
    environment: dict[str, str]
    scheduler: Role
    apis: list[Role]
    worker: Role
    roles: list[Role] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Base URL of the first API node."""
        return str(self.apis[0].facts["url"])

    def start(self, role: str, *, within: Sequence[str] = (), **environment: str) -> Role:
        """Start one more process and wait until it is ready."""
        started = start_role(role, self.environment | environment, within=within)
        self.roles.append(started)
        return started

    def stop(self) -> None:
        """End all processes, before their servers go."""
        for role in self.roles:
            role.process.send_signal(signal.SIGTERM)
        for role in self.roles:
            role.finish()

    def get(self, path: str, api: int = 0) -> Any:
        """What an API node answers, as JSON."""
        return get(f"{self.apis[api].facts['url']}{path}")

    def model_pid(self, model: str = "demo") -> int:
        """The process that serves a model, once there is one and no more; others may be dying, or just beginning."""

        def alive() -> int | None:
            rows = [row for row in self.get("/admin/workers")["data"] if row["model"] == model]
            pids = [row["pid"] for row in rows if psutil.pid_exists(row["pid"])]
            return pids[0] if len(pids) == 1 else None

        return int(until(alive))

    def declare_dead(self) -> list[str]:
        """Take every worker's jobs away, as the reaper does when a lease has ended; their ids."""

        async def reap() -> list[str]:
            redis = command_client(self.redis.url)
            queue = JobQueue(redis)
            taken = [job for worker in await queue.live_workers() for job in await queue.reap(0, worker=worker)]
            await redis.aclose()
            return taken

        return asyncio.run(reap())

    def fail_at(self, point: str) -> None:
        """The next model process that comes to this point fails there, once (faults/failpoints/sitecustomize.py)."""
        new = self._fail_file.with_suffix(".new")
        new.write_text(point)
        new.rename(self._fail_file)

    def has_failed(self) -> bool:
        """Has a process come to the point, and is it over (or, where it hangs: does it hang)?"""
        return not self._fail_file.exists()

    def go_on(self) -> None:
        """What hangs goes on."""
        self._fail_file.with_suffix(".hangs").unlink()

    @property
    def _fail_file(self) -> Path:
        return Path(self.environment["FAIL_FILE"])

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows of a read-only SELECT, as `mlx-farm audit query` gets them."""
        command = [sys.executable, "-m", "scheduler", "sql", sql, "--json", "--limit", "100000"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows


def start_role(role: str, environment: dict[str, str], *, within: Sequence[str] = ()) -> Role:
    """`python -m <role>`; returns once it has said READY. Its log goes to the file LOG_FILE, if that is set.

    `within`: a command that becomes the one behind it.
    """
    log_file = environment.get("LOG_FILE")
    with open(log_file, "ab") if log_file else nullcontext() as log:
        process = subprocess.Popen(
            [*within, sys.executable, "-m", role],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    watchdog = threading.Timer(READY_S, process.kill)
    watchdog.start()
    for line in process.stdout:
        if line.startswith("READY "):
            watchdog.cancel()
            return Role(process, json.loads(line.removeprefix("READY ")))
    watchdog.cancel()
    raise RuntimeError(f"{role} did not get ready: exit code {Role(process, {}).finish()}")


@pytest.fixture(scope="session")
def start_farm(
    start_redis: Callable[[], Any], new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Farm]]:
    """Start farms that are stopped at the end of the run; keywords become FARM_… settings; no spare processes.

    `redis` is anything with a `url`, which stays the caller's; without it the farm gets a server of its own. Model
    processes can `fail_at` a point where `failpoints` are asked for; `variables` are of the environment, `own` those of
    single roles (`workers`, `scheduler`, `api`). A lease ends only where the test shortens it: no stall of the machine
    is taken for a death.
    """
    farms: list[Farm] = []

    def start(
        *,
        apis: int = 1,
        redis: Any = None,
        failpoints: bool = False,
        variables: Mapping[str, str] | None = None,
        own: Mapping[str, Mapping[str, str]] | None = None,
        **settings: str,
    ) -> Farm:
        redis, database_url = redis or start_redis(), new_database()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FARM_")}
        environment |= {
            "FARM_HOME": str(tmp_path_factory.mktemp("home")),
            "FARM_REDIS_URL": redis.url,
            "FARM_DATABASE_URL": database_url,
            "FARM_PORT": "0",
            "FARM_SUPERVISED": "1",
            "FARM_LOG_FORMAT": "json",
            "FARM_SPARE_PROCESS": "false",
            "FARM_LEASE_S": "40",
            "FAIL_FILE": str(tmp_path_factory.mktemp("failures") / "point"),
            **(patched("failpoints") if failpoints else {"PYTHONPATH": str(Path(__file__).parents[2])}),
            **(variables or {}),
            **{f"FARM_{key.upper()}": value for key, value in settings.items()},
        }
        of_role = {role: environment | dict((own or {}).get(role, {})) for role in ("workers", "scheduler", "api")}
        worker = start_role("workers", of_role["workers"])
        scheduler = start_role("scheduler", of_role["scheduler"])
        nodes = [start_role("api", of_role["api"]) for _ in range(apis)]
        farms.append(Farm(redis, database_url, environment, scheduler, nodes, worker, [worker, scheduler, *nodes]))
        return farms[-1]

    yield start
    for farm in farms:
        for role in reversed(farm.roles):
            if role.process.poll() is None:
                role.process.send_signal(signal.SIGTERM)
        for role in farm.roles:
            try:
                role.finish(60)
            except subprocess.TimeoutExpired:
                role.kill()


@pytest.fixture(scope="session")
def farm(start_farm: Callable[..., Farm]) -> Farm:
    """The farm that tests share when they do it no harm."""
    return start_farm()


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Call until the answer is true; returns it."""
    return until
