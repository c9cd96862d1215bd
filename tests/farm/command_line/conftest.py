"""The command line as a process of its own, and an HTTP server that answers as a test says, in place of the API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Request:
    """What the stand-in received."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Reply:
    """What it answers; `cut` closes the connection after the body as a crash would."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False

    def encoded(self) -> bytes:
        """The body's bytes: text as it is, anything else as JSON."""
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


class StubApi:
    """Answers each request by `answer` and remembers it."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answer: Callable[[Request], Reply] = lambda request: Reply(404, {"error": {"message": "no such path"}})
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                data = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, json.loads(data) if data else None)
                stub.requests.append(request)
                reply = stub.answer(request)
                body = reply.encoded()
                self.send_response(reply.status)
                self.send_header("content-length", str(len(body) + (1000 if reply.cut else 0)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = reply.cut

            do_GET = do_POST = _serve

            def log_message(self, format: str, *args: Any) -> None:
                """Be silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @staticmethod
    def reply(body: Any = None, status: int = 200, cut: bool = False, **headers: str) -> Reply:
        """An answer; `retry_after="1"` becomes the header retry-after."""
        return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()}, cut)

    def paths(self) -> list[str]:
        """Method and path of each request."""
        return [f"{request.method} {request.path}" for request in self.requests]

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def stub_api() -> Iterator[StubApi]:
    """A fresh stand-in for the API."""
    stub = StubApi()
    yield stub
    stub.close()


@dataclass
class CommandLine:
    """`mlx-farm` with a clean environment and its own data folder."""

    environment: dict[str, str]
    folder: Path

    def __call__(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=self.folder,
            input=text,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def command(self, *arguments: str) -> list[str]:
        """The command to start it."""
        return [sys.executable, "-m", "farm", *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it in the background."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def mlx_farm(tmp_path: Path) -> CommandLine:
    """The command line; set `environment["FARM_URL"]` to point it somewhere."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    environment |= {"FARM_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}
    return CommandLine(environment, tmp_path)
