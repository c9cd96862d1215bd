"""A Redis that others could reach: over TLS, and with a user who may do what the farm does and nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from redis.exceptions import NoPermissionError

from scheduler.connections import command_client
from scheduler.errors import QueueUnavailable
from scheduler.servers import look
from tests.certificates import Authority, Signed
from tests.conftest import REDIS_SERVER, RedisServer
from tests.faults.redis_nodes import free_port

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
QUESTION = {"model": "demo", "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, "max_tokens": 8}
USER = "farm:a-secret"


class TlsServer:
    """A Redis that wants a certificate of the authority. Raises RuntimeError where the program cannot do TLS."""

    def __init__(self, folder: Path, program: str, authority: Authority, own: Signed) -> None:
        self._port = free_port()
        self._authority = authority
        files = {"cert": own.certificate, "key": own.key, "ca-cert": authority.certificate}
        options = {"tls-port": str(self._port), "bind": "127.0.0.1"}
        options |= {f"tls-{name}-file": str(path) for name, path in files.items()}
        folder.mkdir()
        self.server = RedisServer(folder, program, options)
        self.server.start()

    def url(self, user: str, client: Signed | None) -> str:
        """For a client with this certificate."""
        signed = f"&ssl_certfile={client.certificate}&ssl_keyfile={client.key}" if client else ""
        return f"rediss://{user}@127.0.0.1:{self._port}/0?ssl_ca_certs={self._authority.certificate}{signed}"


class Guarded:
    """A server with the user of docs/operations.md, whom the farm's URL names; over TLS where a program can do that."""

    def __init__(self, server: RedisServer, url: str) -> None:
        self.server, self.url = server, url
        found = re.search(r"^ACL SETUSER farm .*$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
        assert found
        server.ask(*found.group().replace("PASSWORD", USER.partition(":")[2]).split())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom both sides believe."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def start_tls(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Signed], TlsServer | None]]:
    """Start a TLS server with a certificate; None where no installed program can."""
    started: list[TlsServer] = []

    def start(own: Signed) -> TlsServer | None:
        for program in filter(None, (REDIS_SERVER, shutil.which("redis-server"))):
            try:
                server = TlsServer(tmp_path_factory.mktemp("tls") / "data", program, authority, own)
            except RuntimeError:
                continue
            started.append(server)
            return server
        return None

    yield start
    for server in started:
        server.server.kill()


@pytest.fixture(scope="module")
def tls(authority: Authority, start_tls: Callable[[Signed], TlsServer | None]) -> TlsServer | None:
    """A server that is who it says."""
    return start_tls(authority.sign("server", "127.0.0.1"))


@pytest.fixture(scope="module")
def guarded(authority: Authority, tls: TlsServer | None, start_redis: Callable[[], RedisServer]) -> Guarded:
    """What the farm runs on."""
    if tls is not None:
        return Guarded(tls.server, tls.url(USER, authority.sign("client")))
    server = start_redis()
    name, _, password = USER.partition(":")
    return Guarded(server, f"unix://{name}@{server.socket}?password={password}")


def test_a_whole_farm_needs_no_more_than_its_user_may(
    start_farm: Callable[..., Any], guarded: Guarded, eventually: Callable[..., Any]
) -> None:
    """Redis notes every command, key and channel that it denies."""
    farm = start_farm(redis=guarded, limit_requests_per_minute="1000", batch_window="2")
    farm.start("api.batches")
    with httpx2.Client(base_url=farm.url, timeout=120) as http:
        with http.stream("POST", "/v1/chat/completions", json=QUESTION | {"stream": True}) as response:
            assert "data: [DONE]" in list(response.iter_lines())
        asynchronous = {"Prefer": "respond-async"}
        assert http.post("/v1/chat/completions", json=QUESTION, headers=asynchronous).status_code == 202
        for page in ("admin/workers", "health", "metrics", "v1/models"):
            assert http.get(page).status_code == 200
    client = openai.OpenAI(base_url=f"{farm.url}/v1", api_key="unused")
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": QUESTION}
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    eventually(lambda: client.batches.retrieve(batch.id).status == "completed", 120)
    states = "SELECT state, COUNT(*) AS n FROM jobs GROUP BY state"
    eventually(lambda: farm.query(states) == [{"state": "finished", "n": 3}], 120)
    farm.stop()
    assert guarded.server.ask("ACL", "LOG") == []


@pytest.mark.parametrize(
    "command",
    [
        ("CONFIG", "GET", "dir"),
        ("KEYS", "*"),
        ("FLUSHALL",),
        ("EVAL", "return 1", "0"),
        ("SHUTDOWN",),
        ("ACL", "LIST"),
        ("GET", "somebody-else's"),
        ("PUBLISH", "somebody-else's", "x"),
    ],
)
async def test_its_user_may_nothing_else(guarded: Guarded, command: tuple[str, ...]) -> None:
    client = command_client(guarded.url)
    with pytest.raises(NoPermissionError):
        await client.execute_command(*command)  # type: ignore[no-untyped-call]
    await client.aclose()
    guarded.server.ask("ACL", "LOG", "RESET")


async def test_who_is_not_believed_is_told_why(
    authority: Authority, tls: TlsServer | None, guarded: Guarded, start_tls: Callable[[Signed], TlsServer | None]
) -> None:
    if tls is None:
        pytest.skip("no installed Redis can do TLS")
    client = authority.sign("other-client")
    # TLS 1.3 says why behind the handshake: a client that writes meanwhile may hear only that it was cut off.
    with pytest.raises(QueueUnavailable, match=r"certificate required|closed|reset|[Ll]ost"):
        await look(tls.url(USER, None))
    with pytest.raises(QueueUnavailable, match="invalid username-password"):
        await look(tls.url("farm:wrong", client))
    impostor = await asyncio.to_thread(start_tls, authority.sign("impostor", "127.0.0.2"))
    assert impostor is not None
    with pytest.raises(QueueUnavailable, match="certificate is not valid for"):
        await look(impostor.url(USER, client))
