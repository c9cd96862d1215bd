"""Whatever our OpenAPI document allows a client to send, the server answers it: no 5xx, and never silence."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import httpx2

from tests.api.scripted_farm import NodeServer, ScriptedWorker

CLIENT = Path(__file__).parent / "openapi_requests.py"


async def test_no_generated_request_is_a_server_error(
    server: NodeServer, worker: ScriptedWorker, client: httpx2.AsyncClient
) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, str(CLIENT), server.url, stdout=pipe, stderr=pipe)
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    told = json.loads(out)
    assert told["failures"] == []
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert set(told["sent"]) == {f"{method.upper()} {path}" for path, item in paths.items() for method in item}
