"""Images in all protocols: read once, counted before anybody has seen them, fetched only where that is safe."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest
from redis.asyncio import Redis

from scheduler.images import MAX_IMAGE_BYTES
from scheduler.queue import JobQueue
from tests.api.conftest import StartNode
from tests.api.scripted_farm import IMAGE, MODEL, ScriptedWorker, chat_body, prompt_text, seeing_card, until
from tests.pictures import data_url, picture, png_of_size

WIDE = picture(1, 60, 20)
TALL = picture(2, 10, 50, "JPEG")
TURNED = picture(3, 60, 20, "JPEG", orientation=6)


def image(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def shows(*parts: Any, **changes: Any) -> dict[str, Any]:
    return chat_body(messages=[{"role": "user", "content": list(parts)}], **changes)


@pytest.fixture
async def seeing(redis: Redis, queue: JobQueue) -> AsyncIterator[ScriptedWorker]:
    """A worker whose model sees, from its first card on."""
    scripted = ScriptedWorker(redis, queue)
    await scripted.announce(seeing_card())
    task = asyncio.create_task(scripted.run())
    yield scripted
    scripted.retire()
    await task


async def test_an_image_is_its_tokens_in_the_prompt_and_its_file_in_the_job(
    sdk: openai.AsyncOpenAI, seeing: ScriptedWorker
) -> None:
    parts = [text("A"), text("B"), image(data_url(WIDE)), text("and"), image(data_url(TALL, "jpeg"), detail="auto")]
    raw = await sdk.chat.completions.with_raw_response.create(**shows(*parts))
    [request] = seeing.requests
    shown = "A\nB" + 12 * IMAGE.token + "and" + 5 * IMAGE.token
    assert prompt_text(request) == f"<|im_start|>user\n{shown}<|im_end|>\n<|im_start|>assistant\n"
    assert request.images == (WIDE, TALL)
    assert request.image_count == 2
    usage = raw.parse().usage
    assert usage is not None
    assert usage.prompt_tokens == len(request.prompts[0])
    assert "farm-ignored-params" not in raw.headers


async def test_the_size_is_that_of_the_upright_image_scaled_as_the_model_wants(
    client: httpx2.AsyncClient, seeing: ScriptedWorker
) -> None:
    for data, count in [(TURNED, 12), (picture(4, 3, 3), 1), (picture(5, 400, 300, "WEBP"), 24)]:
        answer = await client.post("/v1/chat/completions", json=shows(image(data_url(data)), image(data_url(WIDE))))
        assert answer.status_code == 200
        assert prompt_text(seeing.requests[-1]).count(IMAGE.token) == count + 12


async def test_all_protocols_mean_the_same_by_an_image(client: httpx2.AsyncClient, seeing: ScriptedWorker) -> None:
    block = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(WIDE).decode()}
    message = {"role": "user", "content": [{"type": "image", "source": block}, text("?")]}
    items = [{"type": "input_image", "image_url": data_url(WIDE)}, {"type": "input_text", "text": "?"}]
    posts: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", shows(image(data_url(WIDE)), text("?"))),
        ("/v1/messages", {"model": MODEL, "max_tokens": 20, "messages": [message]}),
        ("/v1/responses", {"model": MODEL, "input": [{"role": "user", "content": items}]}),
        ("/v1/jobs", {"kind": "chat.completions", "body": shows(image(data_url(WIDE)), text("?"))}),
    ]
    for url, body in posts:
        answer = await client.post(url, json=body)
        assert answer.is_success, answer.text
    await until(lambda: len(seeing.requests) == len(posts), timeout_s=60)
    assert len({(request.prompts, request.images) for request in seeing.requests}) == 1
    tokens = len(seeing.requests[0].prompts[0])
    counted = await client.post("/v1/messages/count_tokens", json={"model": MODEL, "messages": [message]})
    assert counted.json() == {"input_tokens": tokens}
    counted = await client.post("/v1/responses/input_tokens", json=posts[2][1])
    assert counted.json()["input_tokens"] == tokens
    counted = await client.post("/tokenize", json={"messages": posts[0][1]["messages"]})
    assert counted.json()["count"] == tokens


async def test_a_model_that_reads_text_refuses_images_by_its_name(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    refused = await client.post("/v1/chat/completions", json=shows(text("?"), image(data_url(WIDE))))
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "messages.0.content.1.image_url")
    assert repr(MODEL) in error["message"]
    assert worker.requests == []


REFUSALS: list[tuple[list[Any], str, str]] = [
    ([image("https://example.com/cat.png")], "image_url", "FARM_REMOTE_IMAGES"),
    ([image("file:///etc/passwd")], "image_url", "not fetched"),
    ([image("data:text/html;base64,aGk=")], "image_url", "data:image/png;base64"),
    ([image("data:image/png,raw")], "image_url", "data:image/png;base64"),
    ([image("data:image/png;base64,%%%%")], "image_url", "no base64"),
    ([image(data_url(b"GIF89a not this"))], "image_url", "no PNG, JPEG or WebP"),
    ([image(data_url(png_of_size(65_500, 65_500)))], "image_url", "million"),
    ([image(data_url(picture(1, 401, 2)))], "image_url", "200 times"),
    ([image("data:image/png;base64," + "A" * (MAX_IMAGE_BYTES * 4 // 3 + 20))], "image_url", "bytes"),
    ([image(data_url(WIDE)) for _ in range(65)], "image_url", "at most 64 images"),
    ([{"type": "image_url"}], "image_url", "needs image_url"),
    ([text(f"what is {IMAGE.marker}?")], "messages", "stands for an image"),
    ([image(data_url(WIDE)), text(f"what is {IMAGE.marker}?")], "messages", "stands for an image"),
]


@pytest.mark.parametrize(("parts", "param", "reason"), REFUSALS)
async def test_what_is_no_image_is_refused_by_its_place(
    client: httpx2.AsyncClient, seeing: ScriptedWorker, parts: list[Any], param: str, reason: str
) -> None:
    refused = await client.post("/v1/chat/completions", json=shows(*parts))
    error = refused.json()["error"]
    assert refused.status_code == 400
    assert error["param"].endswith(param)
    assert reason in error["message"]
    assert seeing.requests == []


async def test_only_users_and_tools_show_images(client: httpx2.AsyncClient, seeing: ScriptedWorker) -> None:
    for role, reason in [("system", "show no images"), ("assistant", "show no images"), ("tool", "template")]:
        message = {"role": role, "content": [image(data_url(WIDE))]}
        refused = await client.post("/v1/chat/completions", json=chat_body(messages=[message]))
        assert refused.status_code == 400
        assert reason in refused.json()["error"]["message"]


async def test_an_image_that_leaves_no_room_is_too_long_a_prompt(
    client: httpx2.AsyncClient, seeing: ScriptedWorker
) -> None:
    large = image(data_url(picture(6, 60, 50)))
    refused = await client.post("/v1/chat/completions", json=shows(*[large] * 14))
    assert refused.json()["error"]["code"] == "context_length_exceeded"


async def test_detail_is_listed_as_without_effect(client: httpx2.AsyncClient, seeing: ScriptedWorker) -> None:
    answer = await client.post("/v1/chat/completions", json=shows(image(data_url(WIDE), detail="low")))
    assert answer.status_code == 200
    assert answer.headers["farm-ignored-params"] == "messages.0.content.0.image_url.detail"


class Gallery:
    """Answers every request with `status`, `kind` and `body`."""

    def __init__(self) -> None:
        self.status, self.kind, self.body, self.host = 200, "image/png", WIDE, ""
        self.more = ""
        self.asked = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        head = f"HTTP/1.1 {self.status} X\r\ncontent-type: {self.kind}\r\n{self.more}connection: close\r\n\r\n"
        writer.write(head.encode() + self.body)
        writer.close()


@asynccontextmanager
async def gallery() -> AsyncIterator[Gallery]:
    made = Gallery()
    server = await asyncio.start_server(made.take, "127.0.0.1", 0)
    made.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made


async def test_an_image_is_fetched_once_where_the_operator_allows_it(
    start_node: StartNode, seeing: ScriptedWorker
) -> None:
    async with gallery() as pictures:
        node = await start_node(remote_images=True, image_hosts=pictures.host)
        url = f"http://{pictures.host}/cat.png"
        async with httpx2.AsyncClient(base_url=node.url, timeout=60) as client:
            answer = await client.post("/v1/chat/completions", json=shows(image(url), image(url)))
            assert answer.status_code == 200, answer.text
            assert seeing.requests[0].images == (WIDE, WIDE)
            assert pictures.asked == 1
            answers: list[tuple[dict[str, Any], str]] = [
                ({"status": 302, "more": "location: http://169.254.169.254/\r\n"}, "redirects are not followed"),
                ({"status": 200, "more": "", "kind": "text/html"}, "no image"),
                ({"kind": "image/png", "body": b"<html>"}, "no PNG, JPEG or WebP"),
                ({"body": bytes(MAX_IMAGE_BYTES + 1)}, "bytes"),
            ]
            for changes, reason in answers:
                for name, value in changes.items():
                    setattr(pictures, name, value)
                refused = await client.post("/v1/chat/completions", json=shows(image(url)))
                assert refused.status_code == 400
                assert reason in refused.json()["error"]["message"]


async def test_no_address_that_is_not_public_is_asked_for_an_image(
    start_node: StartNode, seeing: ScriptedWorker
) -> None:
    async with gallery() as pictures:
        node = await start_node(remote_images=True)
        port = pictures.host.rpartition(":")[2]
        urls = [f"http://{pictures.host}/", f"https://{pictures.host}/", f"https://localhost:{port}/"]
        urls += ["https://localhost/", "https://[::ffff:127.0.0.1]/", "https://user@example.com/"]
        async with httpx2.AsyncClient(base_url=node.url, timeout=60) as client:
            for url in urls:
                refused = await client.post("/v1/chat/completions", json=shows(image(url)))
                error = refused.json()["error"]
                assert (refused.status_code, error["code"]) == (400, "invalid_image_url"), url
                assert "127.0.0.1 is" not in error["message"]
        assert pictures.asked == 0
        assert seeing.requests == []
