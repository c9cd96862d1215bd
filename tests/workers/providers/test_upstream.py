"""Asking a provider: where it may be, what its refusals mean, and that leaving closes the connection."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

import pytest

from scheduler.providers import Provider, read_provider
from scheduler.requests import JobRequest, Stopping
from tests.workers.providers.stand_in import Reply, StandIn, openai_answer
from workers.providers.saying import ProviderFailed
from workers.providers.upstream import Upstream, refusal, wait_s

ASKED = JobRequest(
    kind="chat.completions",
    model="cloud/big",
    prompts=((),),
    stopping=Stopping(max_tokens=5),
    conversation=b'{"messages":[{"role":"user","content":"Hi"}]}',
)


@pytest.fixture
async def cloud() -> AsyncIterator[StandIn]:
    async with StandIn().running() as cloud:
        yield cloud


def provider(cloud: StandIn, **changes: Any) -> Provider:
    said = {"name": "cloud", "kind": "openai", "base_url": cloud.url, "models": [{"name": "big"}]}
    return read_provider(said | changes)


async def read(cloud: StandIn, *, trusted: bool = True, key: str = "sk-1", **changes: Any) -> bytes:
    upstream = Upstream(provider(cloud, **changes), key, frozenset({cloud.address} if trusted else ()))
    try:
        async with upstream.answer(ASKED, "big") as data:
            return b"".join([part async for part in data])
    finally:
        await upstream.close()


async def test_a_provider_is_asked_with_its_key_and_no_other_header_of_ours(cloud: StandIn) -> None:
    cloud.replies = [Reply(openai_answer("Hi"))]
    assert b"Hi" in await read(cloud)
    [asked] = cloud.requests
    assert (asked.path, asked.headers["authorization"]) == ("/v1/chat/completions", "Bearer sk-1")
    await read(cloud, kind="anthropic")
    headers = cloud.requests[1].headers
    assert (cloud.requests[1].path, headers["x-api-key"]) == ("/v1/messages", "sk-1")
    assert "authorization" not in headers


async def test_no_private_address_is_connected_to_unless_the_operator_trusts_it(cloud: StandIn) -> None:
    cloud.replies = [Reply(openai_answer("Hi"))]
    with pytest.raises(ProviderFailed) as failed:
        await read(cloud, trusted=False)
    assert (failed.value.code, failed.value.passing, cloud.requests) == ("provider_forbidden", False, [])
    assert "127.0.0.1" not in str(failed.value)


async def test_redirects_are_not_followed(cloud: StandIn) -> None:
    cloud.replies = [Reply(status=307, headers={"location": f"{cloud.url}/elsewhere"})]
    with pytest.raises(ProviderFailed, match="redirects are not followed"):
        await read(cloud)
    assert len(cloud.requests) == 1


@pytest.mark.parametrize(
    ("reply", "code", "passing", "refused"),
    [
        (
            Reply([b'{"error": {"message": "slow down"}}'], 429, {"retry-after": "7"}),
            "provider_overloaded",
            True,
            False,
        ),
        (Reply([b"<html>oops"], 500), "provider_error", True, False),
        (Reply([b'{"type":"error","error":{"message":"no"}}'], 400), "invalid_request", False, True),
        (Reply([b'{"error": "who?"}'], 401), "provider_refused", False, False),
        (Reply([b"{}"], 200, {"content-type": "application/json"}), "provider_garbage", True, False),
        (Reply([b"data: 1\n\n"], drop=True), "provider_unreachable", True, False),
    ],
)
async def test_refusals_say_whose_fault_they_are(
    cloud: StandIn, reply: Reply, code: str, passing: bool, refused: bool
) -> None:
    cloud.replies = [reply]
    with pytest.raises(ProviderFailed) as failed:
        await read(cloud)
    error = failed.value
    assert (error.code, error.passing, error.refused) == (code, passing, refused)
    assert error.wait_s == (7.0 if reply.status == 429 else 0.0)


async def test_silence_has_an_end(cloud: StandIn) -> None:
    cloud.replies = [Reply(openai_answer("Hi"), hold_before=1)]
    with pytest.raises(ProviderFailed, match=r"silent for 0\.2 s") as failed:
        await read(cloud, silence_s=0.2)
    assert failed.value.code == "provider_timeout"


async def test_an_answer_that_drips_for_ever_has_an_end(cloud: StandIn) -> None:
    cloud.replies = [Reply(openai_answer("Hi"), hold_before=1)]
    with pytest.raises(ProviderFailed, match=r"longer than 0\.3 s") as failed:
        await read(cloud, timeout_s=0.3)
    assert failed.value.code == "provider_timeout"


async def test_a_provider_that_is_not_there_is_said_to_be(cloud: StandIn) -> None:
    nobody = StandIn()
    nobody.address = "127.0.0.1:1"
    with pytest.raises(ProviderFailed) as failed:
        await read(nobody)
    assert (failed.value.code, failed.value.passing) == ("provider_unreachable", True)


async def test_who_leaves_closes_the_connection(cloud: StandIn) -> None:
    cloud.replies = [Reply(openai_answer("Hi", "there"), hold_before=1)]
    upstream = Upstream(provider(cloud), "", frozenset({cloud.address}))
    async with upstream.answer(ASKED, "big") as data:
        assert await anext(data)
        await cloud.holding.wait()
    await cloud.left.wait()
    await upstream.close()


def test_a_retry_after_is_seconds_or_a_date_and_never_nonsense() -> None:
    now_s = float(int(time.time()))
    assert wait_s("2.5", now_s) == 2.5
    assert wait_s(formatdate(now_s + 30, usegmt=True), now_s) == 30.0
    assert [wait_s(text, now_s) for text in ("", "soon", "-5", "nan", "inf")] == [0.0] * 5
    assert wait_s("1e9", now_s) == 3600.0


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_repeated_to_us_is_not_repeated_by_us(status: int) -> None:
    error = refusal(status, "", b'{"error": {"message": "Incorrect API key provided: sk-canary"}}')
    assert "sk-canary" not in str(error)


def test_what_a_refusal_says_is_shown_only_so_far() -> None:
    assert len(str(refusal(500, "", b"x" * 100_000))) < 400
    assert "\n" not in str(refusal(500, "", b"a\nb"))
