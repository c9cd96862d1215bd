"""`python -m api` as a process: its READY line, its weight, and how it stops."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from api.__main__ import connections_within
from tests.api.scripted_farm import Script, ScriptedWorker, chat_body, read_events
from tests.waiting import PATIENCE_S, until_async

MAX_RSS_KB = 160 * 1024

HEAVY = ("mlx", "mlx_lm", "transformers", "torch", "numpy", "huggingface_hub", "arq", "alembic", "typer")


async def launch(
    environment: dict[str, str], command: Sequence[str] = (sys.executable, "-m", "api"), **pipes: Any
) -> asyncio.subprocess.Process:
    """Start an API process."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FARM_")}
    return await asyncio.create_subprocess_exec(
        *command,
        env={**inherited, "FARM_PORT": "0", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        **pipes,
    )


@pytest.fixture
async def environment(redis_server: Any, database_url: str, tmp_path: Path, worker: ScriptedWorker) -> dict[str, str]:
    """The farm of the other fixtures, as environment variables."""
    return {"FARM_HOME": str(tmp_path), "FARM_REDIS_URL": redis_server.url, "FARM_DATABASE_URL": database_url}


@pytest.fixture
async def process(environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A supervised API process."""
    child = await launch({**environment, "FARM_SUPERVISED": "1", "FARM_DRAIN_S": "0.3"}, stdin=asyncio.subprocess.PIPE)
    yield child
    if child.returncode is None:
        child.kill()
    await child.communicate()


async def ready(child: asyncio.subprocess.Process) -> str:
    """Wait for the READY line; the URL in it."""
    assert child.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        line = (await child.stdout.readline()).decode()
    assert line.startswith("READY ")
    facts = json.loads(line.removeprefix("READY "))
    assert facts["role"] == "api"
    return str(facts["url"])


async def stopped(child: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Wait for the end: exit code, the rest of stdout, stderr."""
    assert child.stdout is not None
    assert child.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        out, err = await asyncio.gather(child.stdout.read(), child.stderr.read())
        return await child.wait(), out.decode(), err.decode()


def resident_kb(pid: int) -> int:
    """Memory of a process; 0 where there is no /proc."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


async def test_it_serves_within_its_weight_and_stops_on_sigterm(process: asyncio.subprocess.Process) -> None:
    url = await ready(process)
    async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
        responses = await asyncio.gather(*(http.post("/v1/chat/completions", json=chat_body()) for _ in range(50)))
    assert {response.status_code for response in responses} == {200}
    assert resident_kb(process.pid) <= MAX_RSS_KB
    process.send_signal(signal.SIGTERM)
    code, out, err = await stopped(process)
    assert (code, out) == (0, "")
    assert "Traceback" not in err


async def test_it_stops_when_its_supervisor_is_gone(process: asyncio.subprocess.Process) -> None:
    await ready(process)
    assert process.stdin is not None
    process.stdin.close()
    code, _, err = await stopped(process)
    assert code == 0, err


async def test_a_stop_lets_streams_end_properly(process: asyncio.subprocess.Process, worker: ScriptedWorker) -> None:
    url = await ready(process)
    worker.script = Script(hold_before=1)
    async with (
        httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S) as http,
        http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)) as response,
    ):
        await worker.held.wait()
        process.send_signal(signal.SIGINT)
        events = [event async for event in read_events(response.aiter_lines())]
    assert json.loads(events[-1].data)["error"]["code"] == "engine_draining"
    code, _, err = await stopped(process)
    assert (code, "Traceback" in err) == (0, False)


async def test_a_public_address_gets_a_key_at_its_first_start(environment: dict[str, str], tmp_path: Path) -> None:
    child = await launch({**environment, "FARM_HOST": "0.0.0.0"})
    try:
        url = (await ready(child)).replace("0.0.0.0", "127.0.0.1")
        text = (tmp_path / "first-key").read_text().strip()
        async with httpx2.AsyncClient(base_url=url, timeout=300) as http:
            assert (await http.get("/v1/models")).status_code == 401
            assert (await http.get("/v1/models", headers={"x-api-key": text})).status_code == 200
    finally:
        child.kill()
        _, err = await child.communicate()
    assert "first-key" in err.decode()
    assert text not in err.decode()


async def test_few_open_files_are_fewer_connections_and_no_silence(
    environment: dict[str, str], worker: ScriptedWorker
) -> None:
    """F53: `ulimit -n 64`. Who finds no place is told so; with room again all is as before."""
    limited = f"ulimit -n 64; exec {shlex.quote(sys.executable)} -m api"
    child = await launch(
        {**environment, "FARM_SUPERVISED": "1"}, command=["sh", "-c", limited], stdin=asyncio.subprocess.PIPE
    )
    url = await ready(child)
    where = urlsplit(url)
    held = [await asyncio.open_connection(where.hostname, where.port) for _ in range(connections_within(64, 4096))]
    async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S) as late:
        refused = await late.get("/livez")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_connections")
        assert refused.headers["retry-after"] == "1"
    for _, writer in held:
        writer.close()

    async def answered() -> bool:
        async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
            answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=chat_body()) for _ in range(20)))
        return {answer.status_code for answer in answers} == {200}

    await until_async(answered)
    child.send_signal(signal.SIGTERM)
    code, _, err = await stopped(child)
    assert (code, "Traceback" in err) == (0, False)


@pytest.mark.parametrize(
    ("files", "connections"), [(10_000, 4096), (4352, 4096), (1024, 768), (512, 256), (64, 32), (1, 1)]
)
def test_connections_leave_files_for_the_process_itself(files: int, connections: int) -> None:
    assert connections_within(files, 4096) == connections


async def test_a_taken_port_is_told(environment: dict[str, str], process: asyncio.subprocess.Process) -> None:
    port = (await ready(process)).rpartition(":")[2]
    code, out, err = await stopped(await launch({**environment, "FARM_PORT": port}))
    assert (code, out) == (1, "")
    assert "Address already in use" in err
    assert "Traceback" not in err


async def test_no_engine_and_no_command_line_is_imported() -> None:
    listing = "import api.__main__, sys; print(' '.join(sys.modules))"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", listing, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    modules = {name.partition(".")[0] for name in out.decode().split()}
    assert modules.isdisjoint({*HEAVY, "workers", "farm"})
