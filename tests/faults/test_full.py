"""No room left: Redis' memory, Redis' disk, SQL's disk. What is refused leaves no trace, what was accepted goes on."""

from __future__ import annotations

import asyncio
import ctypes
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from redis.asyncio import Redis

from scheduler.connections import command_client
from scheduler.database import open_database
from scheduler.errors import QueueUnavailable, RecordUnavailable
from scheduler.jobs import JobState
from scheduler.migrate import upgrade
from scheduler.projector import Projector
from scheduler.store import Store
from tests.conftest import RedisServer
from tests.farm.conftest import Farm as RealFarm
from tests.farm.streams import Answer, ask
from tests.scheduler.builders import Farm, make_job
from tests.waiting import PATIENCE_S, until

DISK_BYTES = 6 * 2**20
BODY = ask("Tell me a story.", temperature=1.1, seed=8, max_tokens=80)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB (tmpfs); skips where this user may not mount one."""
    if not sys.platform.startswith("linux"):
        pytest.skip("a small file system is made with Linux' mount(2)")
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tmp_path / "small"
    folder.mkdir()
    where = str(folder).encode()
    if libc.mount(b"tmpfs", where, b"tmpfs", 0, f"size={DISK_BYTES}".encode()):
        pytest.skip("this user may not mount a small file system")
    yield folder
    assert libc.umount2(where, 2) == 0


def fill(folder: Path) -> Path:
    """Write until nothing fits any more; deleting the file makes room again."""
    path = folder / "filling"
    with path.open("wb", buffering=0) as file:
        for size in (65536, 512, 1):
            try:
                while file.write(b"x" * size):
                    continue
            except OSError:
                continue
    return path


@pytest.fixture
async def on_small_disk(small_disk: Path) -> AsyncIterator[Redis]:
    """A client of a server whose append-only file has little room."""
    server = RedisServer(small_disk)
    server.start()
    client = command_client(server.url)
    yield client
    await client.aclose()
    server.kill()


async def test_a_full_disk_refuses_writes_and_loses_nothing_accepted(on_small_disk: Redis, small_disk: Path) -> None:
    """F25: MISCONF is 503 for who asks and patience for who works, until there is room."""
    farm = Farm(on_small_disk)
    held = await farm.start()
    waiting = await farm.submit()
    filling = fill(small_disk)
    accepted, why = [waiting], ""
    while not why:
        try:
            accepted.append(await farm.submit())
        except QueueUnavailable as error:
            why = str(error)
    assert "MISCONF" in why
    assert await farm.state(waiting) is JobState.QUEUED
    with pytest.raises(QueueUnavailable, match="MISCONF"):
        await farm.say(held, 1)
    filling.unlink()

    async def answered() -> bool:
        try:
            return (await farm.say(held, 1)).value in (0, 3)
        except QueueUnavailable:
            return False

    while not await answered():
        continue
    assert await farm.finish(held)
    assert {job.id for job in await farm.claim(rows=len(accepted))} == set(accepted)


async def test_a_full_disk_of_sql_delays_the_record_and_loses_nothing(redis: Redis, small_disk: Path) -> None:
    """The projector waits, an async job is refused whole; with room again every event is there once."""
    url = f"sqlite+aiosqlite:///{small_disk / 'farm.db'}"
    await asyncio.to_thread(upgrade, url)
    engine = open_database(url)
    farm = Farm(redis)
    projector = Projector(redis, engine, farm.queue, 0)
    for _ in range(20):
        assert await farm.finish(await farm.start())
    filling = fill(small_disk)
    with pytest.raises(RecordUnavailable):
        await projector.step()
    with pytest.raises(RecordUnavailable):
        await Store(engine).accept(make_job(durable=True, prompt_tokens=50_000))
    filling.unlink()
    while await projector.step():
        continue
    assert await projector.lag_ms() == 0
    await engine.dispose()


def test_full_memory_refuses_requests_while_running_ones_finish(start_farm: Callable[..., RealFarm]) -> None:
    """F24, with all processes: 503 with Retry-After; streams, their ends and the record go on; then all as before."""
    farm = start_farm(failpoints=True)
    undisturbed = Answer(farm.url, BODY).read()
    farm.fail_at("hang 20")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: Answer(farm.url, BODY), range(4)))
        until(farm.has_failed)
        farm.redis.ask("CONFIG", "SET", "maxmemory", "1mb")
        refused = httpx2.post(f"{farm.url}/v1/chat/completions", json=BODY, timeout=PATIENCE_S)
        assert refused.status_code == 503
        assert float(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["message"]
        farm.go_on()
        assert list(pool.map(lambda answer: answer.read(), answers)) == [undisturbed] * 4
    done = "SELECT COUNT(*) AS n FROM jobs WHERE state = 'finished'"
    until(lambda: farm.query(done)[0]["n"] == 5)
    farm.redis.ask("CONFIG", "SET", "maxmemory", "0")
    until(lambda: httpx2.post(f"{farm.url}/v1/chat/completions", json=BODY, timeout=PATIENCE_S).status_code == 200)
