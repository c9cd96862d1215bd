"""Webhooks: signed so that the SDK accepts them, sent until they arrive, never to a private address."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.delivery import Delivery
from scheduler.database import open_database
from scheduler.outbound import ForbiddenAddress, PublicOnly, check_url, is_public
from scheduler.outbox import Outbox, add_webhook, webhook

SECRET = "whsec_" + base64.b64encode(b"a secret of at least this length").decode()


class Receiver:
    """Takes one message a connection; answers with the next of `statuses` (then 200)."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.messages: list[tuple[dict[str, str], str]] = []
        self.host = ""

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        original = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = (await reader.readexactly(int(headers["content-length"]))).decode()
        self.messages.append(({name.lower(): value for name, value in original.items()}, body))
        status = self.statuses.pop(0) if self.statuses else 200
        extra = "location: http://169.254.169.254/\r\n" if status == 302 else ""
        writer.write(f"HTTP/1.1 {status} X\r\n{extra}content-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.take, "127.0.0.1", 0)
    receiver.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield receiver


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = open_database(database_url)
    yield engine
    await engine.dispose()


async def post(engine: AsyncEngine, url: str) -> None:
    async with engine.begin() as connection:
        await add_webhook(connection, webhook("default", url, "batch.completed", {"id": "batch_1"}))


async def due_again(engine: AsyncEngine) -> int:
    """Let every message's wait be over; how many still wait."""
    async with engine.begin() as connection:
        return (await connection.execute(text("UPDATE webhooks SET due_ms = 1 WHERE due_ms IS NOT NULL"))).rowcount


async def test_the_sdk_accepts_what_is_sent(engine: AsyncEngine) -> None:
    async with receiving() as receiver:
        await post(engine, f"http://{receiver.host}/hook")
        assert await Delivery(Outbox(engine), SECRET, frozenset({receiver.host})).deliver() == 1
        [(headers, body)] = receiver.messages
        client = openai.OpenAI(api_key="unused", webhook_secret=SECRET)
        event = client.webhooks.unwrap(body, headers)
        assert event.type == "batch.completed"
        assert event.data.id == "batch_1"
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(body + " ", headers)
        assert await due_again(engine) == 0


async def test_a_message_is_sent_again_with_its_id_until_it_arrives(engine: AsyncEngine) -> None:
    async with receiving() as receiver:
        receiver.statuses = [500, 302]
        delivery = Delivery(Outbox(engine), SECRET, frozenset({receiver.host}))
        await post(engine, f"http://{receiver.host}/hook")
        for _ in range(3):
            assert await delivery.deliver() == 1
            await due_again(engine)
        assert await delivery.deliver() == 0
        assert len(receiver.messages) == 3
        assert len({(headers["webhook-id"], body) for headers, body in receiver.messages}) == 1


async def test_a_receiver_that_is_gone_is_left_alone(engine: AsyncEngine) -> None:
    async with receiving() as receiver:
        receiver.statuses = [410]
        await post(engine, f"http://{receiver.host}/hook")
        await Delivery(Outbox(engine), SECRET, frozenset({receiver.host})).deliver()
        assert await due_again(engine) == 0


async def test_two_senders_send_once(engine: AsyncEngine) -> None:
    async with receiving() as receiver:
        await post(engine, f"http://{receiver.host}/hook")
        senders = [Delivery(Outbox(engine), SECRET, frozenset({receiver.host})) for _ in range(3)]
        assert sum(await asyncio.gather(*(sender.deliver() for sender in senders))) == 1
        assert len(receiver.messages) == 1


async def test_an_address_that_is_not_public_is_never_connected_to(engine: AsyncEngine) -> None:
    async with receiving() as receiver:
        await post(engine, f"http://{receiver.host}/hook")
        await Delivery(Outbox(engine), SECRET, frozenset()).deliver()
        assert receiver.messages == []
        assert await due_again(engine) == 0
        port = int(receiver.host.rpartition(":")[2])
        with pytest.raises(ForbiddenAddress):
            await PublicOnly(frozenset()).connect_tcp("localhost", port)  # a name, resolved where it is connected


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
        ),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"),
        *("2002:7f00:1::", "255.255.255.255", "198.18.0.1"),
    ],
)
def test_these_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1", "::ffff:93.184.216.34"])
def test_these_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.com", "https://example.com:8443", "ftp://example.com", "https://", "//example.com", "x"),
        *("https://user@example.com", "https://a:b@example.com", "https://example.com/#x", "https://ex ample.com"),
        *("https://example.com\\@127.0.0.1", "https://127.0.0.1", "https://[::1]/", "https://[::ffff:10.0.0.1]/"),
        *("https://example.com:x", "https://exämple.com", "https://example.com/" + "x" * 3000),
    ],
)
def test_these_urls_are_refused_at_the_door(url: str) -> None:
    with pytest.raises(ForbiddenAddress):
        check_url(url, frozenset())


def test_a_public_https_url_is_taken_and_a_trusted_host_whatever_it_is() -> None:
    check_url("https://example.com/hook?x=1", frozenset())
    check_url("http://127.0.0.1:9000/hook", frozenset({"127.0.0.1:9000"}))
