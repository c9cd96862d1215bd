"""The SDKs' own test suites: source packages of the pinned versions, run against an API node.

Their fixtures name fixed ids, models and empty bodies. `Seeded` stands before the node's application and makes what
they name, by the node's own endpoints and anew for each request; the answers are the node's.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx2
import orjson
from anthropic.resources.messages import DEPRECATED_MODELS

from tests.api.scripted_farm import MODEL

ROOT = Path(__file__).parents[2]
NAMED_MODELS = ("gpt-6-astra", "gpt-3.5-turbo-instruct", "claude-opus-5-5", "model", "model_id", *DEPRECATED_MODELS)
"""What the fixtures call a model that generates."""

EMBEDDING_MODEL = "text-embedding-3-small"

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Scope = MutableMapping[str, Any]
Maker = Callable[[str], Awaitable[str]]
"""`METHOD LAST_PART_OF_PATH` → the id of something that can be asked that."""

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}


@dataclass(frozen=True)
class Suite:
    """The tests of one SDK: files under tests/api_resources that are about what this server has."""

    sdk: str
    files: tuple[str, ...]
    base_path: str
    options: tuple[str, ...] = ()


OPENAI = Suite(
    "openai",
    (
        "chat/test_completions.py",
        "chat/completions/test_messages.py",
        "test_completions.py",
        "test_responses.py",
        "responses/test_input_items.py",
        "responses/test_input_tokens.py",
        "test_embeddings.py",
        "test_files.py",
        "test_batches.py",
        "test_models.py",
    ),
    "/v1",
)
ANTHROPIC = Suite(
    "anthropic",
    (
        "test_messages.py",
        "test_models.py",
        "messages/test_batches.py",
        "beta/test_messages.py",
        "beta/test_models.py",
        "beta/messages/test_batches.py",
    ),
    "",
    ("-p", "tests._alias_httpx"),
)


def fetch(suite: Suite, folder: Path) -> Path:
    """The unpacked source package of the version that constraints.txt pins; kept in `folder` for the next run."""
    source = folder / f"{suite.sdk}-{_pin(suite.sdk)}"
    if not source.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _pip("download", "--no-deps", f"--no-binary={suite.sdk}", "--dest", scratch, source.name.replace("-", "=="))
            [archive] = Path(scratch).glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                packed.extractall(scratch, filter="data")
            with suppress(OSError):  # another run was faster
                os.rename(Path(scratch) / source.name, source)
    return source


def install_needs(folder: Path) -> Path:
    """What the suites import and this project does not, beside its environment: it has plugins for pytest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = project["project"]["optional-dependencies"]["sdk-suites"]
    pins = [f"{name}=={_pin(name)}" for name in (need.partition(">=")[0] for need in wanted)]
    site = folder / "-".join(pins).replace("==", "-")
    if not site.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _pip("install", "--no-deps", "--target", f"{scratch}/site", *pins)
            with suppress(OSError):
                os.rename(f"{scratch}/site", site)
    return site


def _pin(name: str) -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    [version] = [line.partition("==")[2] for line in lines if line.partition("==")[0] == name]
    return version


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


async def run_suite(suite: Suite, source: Path, site: Path, url: str) -> tuple[dict[str, bool], str]:
    """`FILE::TEST` → does it pass, in every variant (sync and async, transports) that validates answers strictly?

    With what the suite printed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", "--quiet", "--tb=short", f"--junitxml={report}", "-k", "not loose"),
            *("-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider", *suite.options),
            *(f"tests/api_resources/{name}" for name in suite.files),
            cwd=source,
            env={**os.environ, "TEST_API_BASE_URL": url + suite.base_path, "PYTHONPATH": str(site)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode in (0, 1), output.decode()  # 1: some failed
        results: dict[str, bool] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            if case.find("skipped") is None:  # over a transport that a test's own mock does not know
                name, passes = _name(case), case.find("failure") is None and case.find("error") is None
                results[name] = results.get(name, True) and passes
    return results, output.decode()


def _name(case: ElementTree.Element) -> str:
    path, _, _ = case.attrib["classname"].removeprefix("tests.api_resources.").rpartition(".")
    return f"{path.replace('.', '/')}.py::{case.attrib['name'].partition('[')[0]}"


class Makers:
    """Make what the fixtures name by fixed ids. `advance` moves the farm's batches on by one step."""

    def __init__(self, http: httpx2.AsyncClient, advance: Callable[[], Awaitable[None]]) -> None:
        self._http = http
        self._advance = advance
        self.by_fixed_id: dict[str, Maker] = {
            "completion_id": self._completion,
            "response_id": self._response,
            "resp_677efb5139a88190b512bc3fef8e535d": self._response,
            "file_id": self._file,
            "batch_id": self._batch,
            "message_batch_id": self._message_batch,
        }

    async def batch_input(self) -> str:
        """A file with one request."""
        line = {"custom_id": "1", "method": "POST", "url": "/v1/responses", "body": {"model": MODEL, "input": "Hi"}}
        return await self._upload("batch", orjson.dumps(line))

    async def _completion(self, _wanted: str) -> str:
        return await self._made("/v1/chat/completions", CHAT | {"store": True})

    async def _response(self, wanted: str) -> str:
        more = {"background": True} if wanted == "POST cancel" else {}
        return await self._made("/v1/responses", {"model": MODEL, "input": "Hi", **more})

    async def _file(self, _wanted: str) -> str:
        return await self._upload("user_data", b"Example data")

    async def _batch(self, _wanted: str) -> str:
        body = {"completion_window": "24h", "endpoint": "/v1/responses", "input_file_id": await self.batch_input()}
        return await self._made("/v1/batches", body)

    async def _message_batch(self, wanted: str) -> str:
        request = {"custom_id": "1", "params": CHAT | {"max_tokens": 5}}
        made = await self._made("/v1/messages/batches", {"requests": [request]})
        if wanted.startswith("DELETE"):  # what has not ended cannot be deleted
            path = f"/v1/messages/batches/{made}"
            await self._http.post(f"{path}/cancel")
            while (await self._http.get(path)).json()["processing_status"] != "ended":
                await self._advance()
        return made

    async def _upload(self, purpose: str, data: bytes) -> str:
        answer = await self._http.post("/v1/files", data={"purpose": purpose}, files={"file": ("file.jsonl", data)})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def _made(self, path: str, body: dict[str, Any]) -> str:
        answer = await self._http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])


class Seeded:
    """An ASGI application before another: fixed ids in paths and bodies become ids of things that were just made."""

    def __init__(self, app: Any, makers: Makers) -> None:
        self._app = app
        self._makers = makers

    async def __call__(self, scope: Scope, receive: Receive, send: Any) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            path = await self._path(scope["method"], scope["path"])
            scope = {**scope, "path": path, "raw_path": path.encode()}
            if scope["method"] == "POST":
                body = await self._body(path, await _read(receive))
                headers = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
                scope["headers"] = [*headers, (b"content-length", str(len(body)).encode())]
                receive = _replayed(body, receive)
        await self._app(scope, receive, send)

    async def _path(self, method: str, path: str) -> str:
        parts = path.split("/")
        for index, part in enumerate(parts):
            if maker := self._makers.by_fixed_id.get(part):
                parts[index] = await maker(f"{method} {parts[-1]}")
        return "/".join(parts)

    async def _body(self, path: str, body: bytes) -> bytes:
        if path in ("/v1/responses", "/v1/responses/input_tokens"):
            return orjson.dumps({"model": MODEL, "input": "Hi", **orjson.loads(body or b"{}")})
        if path == "/v1/batches":
            return orjson.dumps(orjson.loads(body) | {"input_file_id": await self._makers.batch_input()})
        return body.replace(b"assistants", b"user_data") if path == "/v1/files" else body


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    told = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> MutableMapping[str, Any]:
        return next(told, None) or await receive()

    return replay
