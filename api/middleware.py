"""Around every request: its id, its count and log line; then what is refused before any endpoint runs."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.anthropic.errors import refusal, speaks_anthropic
from api.authorization import Authorization
from api.door import Door
from api.drain import Drain
from api.errors import ApiError, Draining, api_error
from api.metrics import Metrics
from scheduler.errors import FarmError

log = structlog.get_logger()

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:\-]{1,128}")


class RequestFrame:
    """Outermost: gives the request an id, echoes it, counts and logs the answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if _SANE_REQUEST_ID.fullmatch(asked) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if speaks_anthropic(scope):
                    headers["request-id"] = request_id
                if headers.get("content-type", "").startswith("application/json"):
                    headers["openai-processing-ms"] = str(round((time.monotonic() - began_s) * 1000))
            await send(message)

        try:
            await self._app(scope, receive, send_framed)
        finally:
            self._count(scope, status, request_id, began_s)

    def _count(self, scope: Scope, status: int, request_id: str, began_s: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.http_requests.labels(scope["method"], route, str(status)).inc()
        log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round((time.monotonic() - began_s) * 1000, 1),
            request_id=request_id,
        )


class Gate:
    """Refuses before the body is read: a draining node, a caller who may not, a wrong form of body; also a body over
    its limit.

    A request with a JSON body goes in when the body is here and its turn has come. `uploads` are paths whose bodies
    are of any type, have a limit of their own and are read by their endpoint, piece by piece.
    """

    def __init__(
        self,
        app: ASGIApp,
        authorization: Authorization,
        drain: Drain,
        door: Door,
        body_limit_bytes: int,
        uploads: Mapping[str, int],
    ) -> None:
        self._app = app
        self._authorization = authorization
        self._drain = drain
        self._door = door
        self._limit_bytes = body_limit_bytes
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error = self._refusal(scope, headers)
        if error is not None:
            await refusal(error, scope)(scope, receive, send)
            return
        receive = _limited(receive, self._limit(scope))
        with self._door.turn() as turn:
            scope["state"]["turn"] = turn
            if (
                scope["method"] == "POST"
                and scope["path"] not in self._uploads
                and is_json(headers.get("content-type", ""))
            ):
                try:
                    receive = await _received(receive)
                except ApiError as too_long:
                    await refusal(too_long, scope)(scope, receive, send)
                    return
                await turn.begin()
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        path = scope["path"]
        if self._authorization.is_open(scope):
            return None
        if self._drain.draining and path != "/metrics":
            return Draining()
        try:
            scope["state"]["caller"] = self._authorization.caller(scope, headers)
        except FarmError as error:
            return api_error(error)
        except ApiError as error:
            return error
        if int(headers.get("content-length", "0") or 0) > self._limit(scope):
            return too_large(self._limit(scope))
        if scope["method"] != "POST" or not has_body(headers):
            return None
        return unsupported(headers, json_only=path not in self._uploads)

    def _limit(self, scope: Scope) -> int:
        """Bytes that this request's body may have."""
        return self._uploads.get(scope["path"], self._limit_bytes)


def _limited(receive: Receive, limit_bytes: int) -> Receive:
    """Count what arrives, so that a chunked body cannot pass the limit either."""
    received_bytes = 0

    async def receive_limited() -> Message:
        nonlocal received_bytes
        message = await receive()
        if message["type"] == "http.request":
            received_bytes += len(message.get("body", b""))
            if received_bytes > limit_bytes:
                raise too_large(limit_bytes)
        return message

    return receive_limited


async def _received(receive: Receive) -> Receive:
    """Wait for the whole body (a client that leaves ends it); returns what gives it out again and then goes on."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    waiting = iter(messages)

    async def receive_again() -> Message:
        message = next(waiting, None)
        return await receive() if message is None else message

    return receive_again


def has_body(headers: Headers) -> bool:
    """Does the request announce a body?"""
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def unsupported(headers: Headers, *, json_only: bool) -> ApiError | None:
    """The refusal of a body by its form: nothing is decompressed here (RFC 9110, 8.4 and 15.5.16)."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        wanted = "The body must not be compressed: send it as it is, without Content-Encoding."
    elif json_only and not is_json(headers.get("content-type", "")):
        wanted = "The body must be JSON and say so: add -H 'Content-Type: application/json'."
    else:
        return None
    return ApiError(415, wanted, code="unsupported_media_type")


def is_json(content_type: str) -> bool:
    """`application/json` and `application/…+json`, with any parameters."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))


def too_large(limit_bytes: int) -> ApiError:
    """A body over the limit."""
    return ApiError(413, f"The body is over the limit of {limit_bytes} bytes.", code="request_too_large")
