"""HTTP/1.1 connections that cost little, whatever the client does.

A head has a bound in bytes and in fields; a head and a body must come within a time; who takes nothing of his answer is
cut off. All of it is looked at once a second for all connections, so that a token costs nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.errors import SERVER_ERROR, ApiError

MAX_HEAD_BYTES = 32 * 1024
MAX_HEAD_FIELDS = 100
LEAST_BODY_BYTES_PER_S = 16 * 1024
"""After `body_s`: a large body may take longer, but it has to come."""

SEND_BUFFER_BYTES = 64 * 1024
"""Of the system, per connection: a client that does not read holds no more than this and one event."""

LOOK_S = 1.0
LAST_WORDS_S = 1.0
"""A refused client may go on sending for so long; what it says is dropped. Closing at once would lose it the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections there may be, and how long a head, a body and a client that takes nothing may last."""

    connections: int
    head_s: float
    body_s: float
    stalled_s: float


class Connection(HttpToolsProtocol):
    """One client's connection. Writes leave at once: uvloop would hold small ones back until all streams have had their
    turn.
    """

    limits: ConnectionLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refused = False
        self._head_since_s: float | None = None
        self._head_bytes = 0
        self._body_since_s: float | None = None
        self._body_bytes = 0
        self._unsent_bytes = 0
        self._stalled_since_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection, or one too many."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)
        self._head_since_s = self.loop.time()
        if len(self.connections) > self.limits.connections:
            self._refuse(
                ApiError(
                    503,
                    f"This server node has {self.limits.connections} connections already; try again in a moment.",
                    kind=SERVER_ERROR,
                    code="too_many_connections",
                    headers={"retry-after": "1", "retry-after-ms": "1000", "x-should-retry": "true"},
                )
            )

    def data_received(self, data: bytes) -> None:
        """Parse, unless it is a head without an end."""
        if self._refused or self.transport.is_closing():
            return
        if self._body_since_s is None:
            if self._head_since_s is None and not self._answering:
                self._head_since_s = self.loop.time()
            self._head_bytes += len(data)
        super().data_received(data)
        if self._body_since_s is None and self._head_bytes > MAX_HEAD_BYTES and not self._refused:
            self._refuse(_large_head())

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        if self._head_since_s is None:
            self._head_since_s = self.loop.time()

    def on_headers_complete(self) -> None:
        """The head is here: too much of it is answered without any endpoint."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        too_much = size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEAD_FIELDS
        self.app = _large_head().response() if too_much else self.config.loaded_app
        self._head_since_s, self._head_bytes = None, 0
        self._body_since_s, self._body_bytes = self.loop.time(), 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here."""
        self._body_since_s, self._head_bytes = None, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, in the shape of all errors."""
        self._refuse(ApiError(400, msg, code="invalid_http"))

    def look(self, now_s: float) -> None:
        """Has something lasted too long?"""
        if self._stalled(now_s):
            self.transport.abort()
        elif self._refused or self.transport.is_closing() or (self._answering and self.cycle.response_started):
            return
        elif self._head_since_s is not None and now_s - self._head_since_s > self.limits.head_s:
            self._refuse(_slow("headers", self.limits.head_s))
        elif self._body_since_s is not None:
            allowed_s = self.limits.body_s + self._body_bytes / LEAST_BODY_BYTES_PER_S
            if now_s - self._body_since_s > allowed_s:
                self._refuse(_slow("body", self.limits.body_s))

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _stalled(self, now_s: float) -> bool:
        """Has the client taken nothing of what waits for it for too long?"""
        unsent_bytes = self.transport.get_write_buffer_size()
        if not unsent_bytes or unsent_bytes != self._unsent_bytes:
            self._unsent_bytes, self._stalled_since_s = unsent_bytes, now_s
        return now_s - self._stalled_since_s > self.limits.stalled_s

    def _refuse(self, error: ApiError) -> None:
        """Answer beside the application, and close; in the middle of an answer there is only closing."""
        if self._answering and self.cycle.response_started:
            self.transport.abort()
            return
        body = orjson.dumps(error.body())
        fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        lines = [f"{name}: {value}\r\n" for name, value in {**fields, **(error.headers or {})}.items()]
        self.transport.write(b"".join([STATUS_LINE[error.status_code], *map(str.encode, lines), b"\r\n", body]))
        self._refused = True
        self.transport.write_eof()
        self.loop.call_later(LAST_WORDS_S, self.transport.close)


def connection_class(limits: ConnectionLimits) -> type[Connection]:
    """The protocol for one server."""
    return type("LimitedConnection", (Connection,), {"limits": limits})


async def watch_over(connections: Collection[Any]) -> None:
    """Look at all connections, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(LOOK_S)
        for connection in tuple(connections):
            connection.look(loop.time())


def _large_head() -> ApiError:
    bounds = f"{MAX_HEAD_BYTES} bytes or {MAX_HEAD_FIELDS} headers"
    message = f"The request's head is over {bounds}; send fewer or shorter headers."
    return ApiError(431, message, code="headers_too_large", headers={"connection": "close"})


def _slow(part: str, limit_s: float) -> ApiError:
    message = f"The request's {part} did not arrive within {limit_s:g} s; send it again, without pauses."
    return ApiError(408, message, kind="timeout_error", code="request_timeout", headers={"x-should-retry": "true"})
