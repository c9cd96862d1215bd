"""One provider's connections: a request out, bytes of the answer in, and every way in which that can fail.

Only to public addresses, checked where the connection is made; redirects are not followed (scheduler/outbound.py).
Leaving `answer` early closes the connection, and with it what runs at the other end.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from email.utils import parsedate_to_datetime
from types import ModuleType

import httpcore2
import orjson

from scheduler.outbound import ForbiddenAddress, PublicOnly
from scheduler.providers import Kind, Provider
from scheduler.requests import JobRequest
from workers.providers import anthropic, openai
from workers.providers.saying import Garbage, ProviderFailed, error_text, shown

CONNECT_S = 10.0
ERROR_BYTES = 64 * 1024
"""Of the body of a refusal."""

LONGEST_WAIT_S = 3600.0
"""No Retry-After is longer for us."""

PROTOCOLS: Mapping[Kind, ModuleType] = {Kind.OPENAI: openai, Kind.ANTHROPIC: anthropic}

REFUSED = frozenset({400, 413, 422})
"""The request is wrong, and would be elsewhere."""

PASSING = frozenset({408, 409, 425, 429})
"""And everything from 500 on."""


class Upstream:
    """Asks one provider. `trusted` are `host:port` that need be neither https nor public."""

    def __init__(self, provider: Provider, key: str, trusted: frozenset[str]) -> None:
        self._provider = provider
        self._key = key
        self._protocol = PROTOCOLS[provider.kind]
        self._url = provider.url(self._protocol.PATH)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=None,
            network_backend=PublicOnly(trusted),
            keepalive_expiry=30.0,
        )

    async def close(self) -> None:
        """End idle connections."""
        await self._pool.aclose()

    @asynccontextmanager
    async def answer(self, request: JobRequest, model: str) -> AsyncGenerator[AsyncGenerator[bytes]]:
        """The bytes of an answer that has begun. Raises ProviderFailed, also from the bytes.

        What lasts longer than the provider's `timeout_s` in all is given up.
        """
        body = self._protocol.body_of(request, model, self._provider)
        try:
            async with (
                asyncio.timeout(self._provider.timeout_s),
                self._pool.stream(
                    "POST", self._url, headers=self._headers(), content=body, extensions={"timeout": self._timeouts()}
                ) as response,
            ):
                if response.status != 200:
                    raise refusal(response.status, _header(response, b"retry-after"), await _beginning(response))
                kind = _header(response, b"content-type")
                if not kind.lower().startswith("text/event-stream"):
                    raise Garbage(f"content of type {shown(kind)} where a stream of events is wanted")
                async with aclosing(response.aiter_stream()) as parts:
                    yield parts
        except ForbiddenAddress as error:
            why = "its address is not public, and not among FARM_PROVIDER_HOSTS"
            raise ProviderFailed("provider_forbidden", f"the provider is not asked: {why}", passing=False) from error
        except (TimeoutError, httpcore2.TimeoutException) as error:
            raise ProviderFailed("provider_timeout", self._silence(error)) from error
        except (OSError, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            why = str(error) or type(error).__name__
            raise ProviderFailed("provider_unreachable", f"the connection to the provider failed: {why}") from error

    def _headers(self) -> list[tuple[str, str]]:
        common = {"content-type": "application/json", "accept": "text/event-stream", "user-agent": "mlx-farm"}
        return list((common | self._protocol.headers_of(self._key)).items())

    def _timeouts(self) -> dict[str, float]:
        silence_s = self._provider.silence_s
        return {"connect": min(CONNECT_S, silence_s), "read": silence_s, "write": silence_s, "pool": CONNECT_S}

    def _silence(self, error: Exception) -> str:
        if isinstance(error, httpcore2.ConnectTimeout):
            return "the provider cannot be reached in time"
        if isinstance(error, httpcore2.TimeoutException):
            return f"the provider was silent for {self._provider.silence_s:g} s"
        return f"the provider took longer than {self._provider.timeout_s:g} s"


def refusal(status: int, retry_after: str, body: bytes) -> ProviderFailed:
    """What an answer means that is none."""
    try:
        said = orjson.loads(body)
        why = error_text(said) if isinstance(said, dict) else shown(body.decode("utf-8", "replace"))
    except orjson.JSONDecodeError:
        why = shown(body.decode("utf-8", "replace"))
    if status in (401, 403):  # where some repeat the key
        why = "it does not take the key that it was given"
    message = f"the provider answered HTTP {status}: {why}"
    if status in REFUSED:
        return ProviderFailed("invalid_request", message, passing=False, refused=True)
    if status == 429:
        return ProviderFailed("provider_overloaded", message, wait_s=wait_s(retry_after, time.time()))
    if status >= 500 or status in PASSING:
        return ProviderFailed("provider_error", message, wait_s=wait_s(retry_after, time.time()))
    if 300 <= status < 400:
        return ProviderFailed("provider_error", f"{message} (redirects are not followed)", passing=False)
    return ProviderFailed("provider_refused", message, passing=False)


def wait_s(retry_after: str, now_s: float) -> float:
    """Of a Retry-After header: seconds, or a date (RFC 9110, 10.2.3); 0 for what is neither."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - now_s
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT_S) if math.isfinite(seconds) else 0.0


async def _beginning(response: httpcore2.Response) -> bytes:
    """As much of a refusal's body as is worth reading."""
    data = bytearray()
    async with aclosing(response.aiter_stream()) as parts:
        async for part in parts:
            data += part
            if len(data) >= ERROR_BYTES:
                break
    return bytes(data[:ERROR_BYTES])


def _header(response: httpcore2.Response, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in response.headers if name.lower() == wanted), "")
