"""The tests that the SDKs' own makers wrote, against a node with a scripted worker; docs/clients/sdk-suites.md says why
some of them do not apply here, and this keeps that page true."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from fnmatch import fnmatchcase
from pathlib import Path

import httpx2
import pytest
from redis.asyncio import Redis

from api.batches.delivery import Delivery
from api.batches.progress import Progress
from api.batches.worker import Errands
from scheduler.outbox import Outbox
from scheduler.queue import JobQueue
from scheduler.settings import BatchSettings
from tests.api.scripted_farm import NodeServer, Script, ScriptedWorker, make_card
from tests.api.sdk_suites import (
    ANTHROPIC,
    EMBEDDING_MODEL,
    NAMED_MODELS,
    OPENAI,
    Makers,
    Seeded,
    Suite,
    fetch,
    install_needs,
    run_suite,
)

PAGE = (Path(__file__).parents[2] / "docs" / "clients" / "sdk-suites.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (?P<tests>`.+?`) \| (?P<count>.+?) \|", re.MULTILINE)


@pytest.fixture
async def farm(
    server: NodeServer,
    worker: ScriptedWorker,
    redis: Redis,
    queue: JobQueue,
    project: Callable[[], Awaitable[None]],
) -> AsyncIterator[str]:
    """The address of a farm that has what the fixtures name."""
    await worker.announce(make_card(adapters=NAMED_MODELS))
    encoder = ScriptedWorker(redis, queue)
    encoder.script = Script(choices=[[""]], vector=struct.pack("<4f", 0.5, -0.5, 0.5, 0.5))
    await encoder.announce(make_card(name=EMBEDDING_MODEL, task="embed", dimensions=4, short_dimensions=()))
    task = asyncio.create_task(encoder.run())
    settings = BatchSettings(**server.node.settings.model_dump())
    delivery = Delivery(Outbox(server.node.store.engine), None, frozenset())
    errands = Errands(server.node, Progress(server.node, settings), delivery, retention_s=settings.batch_retention_s)

    async def advance() -> None:
        await errands.advance()
        await project()

    async with httpx2.AsyncClient(base_url=server.url, timeout=None) as http:
        server.config.loaded_app = Seeded(server.config.loaded_app, Makers(http, advance))
        yield server.url
    encoder.retire()
    await task


def section(suite: Suite) -> str:
    """What the page says of one suite."""
    return PAGE.partition(f"\n## {suite.sdk}\n")[2].partition("\n## ")[0]


def exceptions(suite: Suite) -> list[str]:
    """Patterns of the tests that the page says do not apply."""
    table = section(suite).partition("\n### ")[2]
    return [pattern for row in ROW.finditer(table) for pattern in re.findall(r"`([^`]+)`", row["tests"])]


@pytest.mark.parametrize("suite", [OPENAI, ANTHROPIC], ids=lambda suite: suite.sdk)
async def test_the_sdks_own_tests_pass_but_for_those_that_do_not_apply(
    suite: Suite, farm: str, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    folder = pytestconfig.cache.mkdir("sdk-suites") if pytestconfig.cache else tmp_path
    source = await asyncio.to_thread(fetch, suite, folder)
    site = await asyncio.to_thread(install_needs, folder)
    results, output = await run_suite(suite, source, site, farm)

    patterns = exceptions(suite)
    assert [name for name, passes in results.items() if not passes and not _listed(name, patterns)] == [], output
    assert [name for name, passes in results.items() if passes and _listed(name, patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in results)] == []
    counts = {name: _counts(name, results) for name in suite.files}
    told = {row["tests"].strip("`"): row["count"] for row in ROW.finditer(section(suite).partition("\n### ")[0])}
    assert told == counts


def _listed(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _counts(file: str, results: dict[str, bool]) -> str:
    own = [passes for name, passes in results.items() if name.startswith(f"{file}::")]
    return f"{sum(own)} of {len(own)}"
