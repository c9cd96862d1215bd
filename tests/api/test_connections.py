"""Slow and hostile clients, at the socket of a real API process: refused clearly or cut off; others notice nothing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from tests.api.scripted_farm import Script, ScriptedWorker, all_events, chat_body, until
from tests.farm.conftest import Role, start_role
from tests.waiting import PATIENCE_S

URL = "/v1/chat/completions"
IMPATIENT = {"FARM_HEADER_TIMEOUT_S": "1", "FARM_BODY_TIMEOUT_S": "1", "FARM_STALLED_READER_S": "2"}
PATIENT = {"FARM_HEADER_TIMEOUT_S": "300", "FARM_BODY_TIMEOUT_S": "300"}
MOST_CONNECTIONS = 40
MB = 2**20


@pytest.fixture(scope="module")
def start_api(
    redis_server: Any, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[dict[str, str]], Role]]:
    """Start API processes; their logs must show no bug of ours."""
    folder, roles = tmp_path_factory.mktemp("connections"), list[Role]()
    farm = {"FARM_HOME": str(folder), "FARM_REDIS_URL": redis_server.url, "FARM_DATABASE_URL": new_database()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    bound = {"FARM_PORT": "0", "FARM_MAX_CONNECTIONS": str(MOST_CONNECTIONS), "LOG_FILE": str(folder / "log")}

    def start(settings: dict[str, str]) -> Role:
        roles.append(start_role("api", {**inherited, **farm, **settings, **bound}))
        return roles[-1]

    yield start
    for role in roles:
        role.kill()
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="module")
def impatient_process(start_api: Callable[[dict[str, str]], Role]) -> Role:
    """An API process without much patience."""
    return start_api(IMPATIENT)


@pytest.fixture(scope="module")
def patient_process(start_api: Callable[[dict[str, str]], Role]) -> Role:
    """One that a stall of its clients makes no difference to."""
    return start_api(PATIENT)


def where(process: Role) -> tuple[str, psutil.Process]:
    """Its URL and the process."""
    return str(process.facts["url"]), psutil.Process(process.process.pid)


@pytest.fixture
def impatient(impatient_process: Role, worker: ScriptedWorker) -> tuple[str, psutil.Process]:
    """Beside a worker."""
    return where(impatient_process)


@pytest.fixture
def node(patient_process: Role, worker: ScriptedWorker) -> tuple[str, psutil.Process]:
    """The patient one, beside a worker."""
    return where(patient_process)


def connect(url: str, receive_bytes: int = 0) -> socket.socket:
    """A client's socket; a small receive buffer makes a slow reader slow at once."""
    address = urlsplit(url)
    client = socket.socket()
    if receive_bytes:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.connect((address.hostname, address.port))
    client.settimeout(PATIENCE_S)
    return client


async def say(url: str, data: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes and read what the server answers, until it closes: the status and the error object."""

    def talk() -> bytes:
        with closing(connect(url)) as client:
            client.sendall(data)
            return b"".join(iter(lambda: client.recv(65536), b""))

    head, _, body = (await asyncio.to_thread(talk)).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def post(body: bytes, *headers: str) -> bytes:
    """A chat request as bytes."""
    lines = [f"POST {URL} HTTP/1.1", "Host: test", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    "data",
    [
        post(b"", *(f"X-{i}: 1" for i in range(200)), "Content-Length: 0"),
        post(b"", f"X: {'a' * 40_000}", "Content-Length: 0"),
        f"GET /{'a' * 40_000} HTTP/1.1\r\nHost: test\r\n\r\n".encode(),
        b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"a" * 200_000,
        b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X: 1\r\n" * 40_000,
    ],
    ids=["many", "long", "path", "endless-value", "endless-fields"],
)
async def test_a_flood_of_headers_is_refused(node: tuple[str, psutil.Process], data: bytes) -> None:
    try:
        status, error = await say(node[0], data)
    except ConnectionError:  # the answer was lost behind what the client still had to send
        return
    assert (status, error["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "headers"),
        (b"GET /v1/models HTTP/1.1\r\nHost: te", "headers"),
        (post(b'{"model": ', "Content-Length: 1000"), "body"),
        (post(b'5\r\n{"mod\r\n', "Transfer-Encoding: chunked"), "body"),
    ],
    ids=["nothing", "half-a-head", "half-a-body", "half-the-chunks"],
)
async def test_who_never_ends_his_request_is_told_and_let_go(
    impatient: tuple[str, psutil.Process], data: bytes, part: str
) -> None:
    status, error = await say(impatient[0], data)
    assert (status, error["code"], f"The request's {part} did not" in error["message"]) == (
        408,
        "request_timeout",
        True,
    )


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01 no http\r\n\r\n", post(b"0\r\n\r\n", "Content-Length: 5", "Transfer-Encoding: chunked")],
    ids=["garbage", "two-lengths"],
)
async def test_what_is_no_http_gets_an_error_object(node: tuple[str, psutil.Process], data: bytes) -> None:
    status, error = await say(node[0], data)
    assert (status, error["code"]) == (400, "invalid_http")


async def test_a_huge_body_is_refused_before_it_is_read(node: tuple[str, psutil.Process]) -> None:
    url, process = node
    before = process.memory_info().rss
    async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        refused = await client.post(URL, content=b" " * (40 * MB), headers={"content-type": "application/json"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")
    assert process.memory_info().rss - before < 20 * MB


async def test_one_connection_too_many_is_told_so_and_a_closed_one_makes_room(node: tuple[str, psutil.Process]) -> None:
    url, _ = node
    held = [connect(url) for _ in range(MOST_CONNECTIONS)]
    status, error = await say(url, b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n")
    assert (status, error["code"]) == (503, "too_many_connections")
    for client in held:
        client.close()

    async def room() -> bool:
        async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
            return (await client.get("/livez")).status_code == 200

    await until(room)


async def test_readers_that_take_nothing_are_cut_off_and_their_jobs_cancelled(
    impatient: tuple[str, psutil.Process], worker: ScriptedWorker
) -> None:
    url, process = impatient
    before = process.memory_info().rss
    worker.script = Script(choices=[["x" * 4_000] * 80], hold_before=79)
    body = json.dumps(chat_body(stream=True)).encode()
    stalled = [connect(url, receive_bytes=4096) for _ in range(3)]
    for client in stalled:
        client.sendall(post(body, f"Content-Length: {len(body)}"))
    await until(lambda: len(worker.claimed) == 3)
    jobs = list(worker.claimed)
    slow = connect(url, receive_bytes=4096)  # this one takes a byte now and then, which opens no window
    slow.sendall(post(body, f"Content-Length: {len(body)}"))

    await until(lambda: len(worker.claimed) == 4)
    port = urlsplit(url).port

    def all_cut_off() -> bool:
        with suppress(OSError):
            slow.recv(1, socket.MSG_DONTWAIT)
        return not any(c.status == psutil.CONN_ESTABLISHED and c.laddr.port == port for c in process.net_connections())

    await until(all_cut_off)
    assert process.memory_info().rss - before < 30 * MB

    async def all_cancelled() -> bool:
        found = [await worker.queue.snapshot(job) or {} for job in jobs]
        return all(snapshot.get("cancel") == "cancelled" for snapshot in found)

    await until(all_cancelled)
    worker.resume.set()
    await until(lambda: set(jobs) <= set(worker.cancelled))
    for client in [*stalled, slow]:
        client.close()


async def test_clients_that_open_and_drop_leave_nothing_behind(
    node: tuple[str, psutil.Process], worker: ScriptedWorker
) -> None:
    url, process = node
    worker.script = Script(choices=[["word "] * 3], hold_before=2)
    body = json.dumps(chat_body(stream=True)).encode()
    for _ in range(10):
        dropped = [connect(url) for _ in range(20)]
        for gone in dropped:
            gone.sendall(post(body, f"Content-Length: {len(body)}"))
            gone.close()
    worker.resume.set()
    async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
        events = await all_events(http, "POST", URL, json=chat_body(stream=True))
        assert events[-1].data == "[DONE]"

        async def nothing_left() -> bool:
            health = (await http.get("/health")).json()
            counts = await worker.queue.redis.hget("{farm.0}:cnt", "t:default")  # type: ignore[misc]
            return health["open_answers"] == 0 and not int(counts or 0)

        await until(nothing_left)
    assert process.num_fds() < 100
