"""The farm's HTTP API as the commands use it: JSON calls and server-sent events on the standard library's client.

One connection per `Client`, kept open between calls; not for use from several threads.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

from farm.errors import CommandError, Unreachable, UsageRefused

DEFAULT_URL = "http://127.0.0.1:8000"
DONE = "[DONE]"
CONNECT_TIMEOUT_S = 5.0
PIECE_BYTES = 256 * 1024
STREAM_SILENCE_S = 60.0
"""The API sends a comment every 10 s on a silent stream, so this long a silence is a lost connection."""
_LOST = (OSError, http.client.HTTPException)
_STALE = (ConnectionError, http.client.NotConnected)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises CommandError when it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            start = self.body[:80].decode(errors="replace")
            raise CommandError(f"The answer is not JSON ({start!r}). Is FARM_URL the address of a farm?") from error


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event, or a comment (which has no data)."""

    data: str = ""
    id: str = ""
    comment: str = ""

    @property
    def is_last(self) -> bool:
        """Does nothing follow? An error without an id is the node's (not the job's): another connection goes on."""
        return self.data == DONE or self.data.startswith('{"error":')


class RequestFailed(CommandError):
    """The API answered with an error."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{error_message(answer)} (HTTP {answer.status})")
        self.status = answer.status


class ConnectionLost(CommandError):
    """The connection broke in mid-answer."""

    def __init__(self, reason: BaseException | str) -> None:
        super().__init__(f"The connection to the farm broke: {str(reason) or type(reason).__name__}.")


class FormBody:
    """multipart/form-data with one file; each iteration reads the file anew. Raises UsageRefused when it cannot."""

    def __init__(self, file: Path, fields: Mapping[str, str]) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        start = f'--{boundary}\r\nContent-Disposition: form-data; name="'
        shown = file.name.replace('"', "%22").replace("\n", "%0A").replace("\r", "%0D")
        parts = [f'{start}{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
        parts.append(f'{start}file"; filename="{shown}"\r\n\r\n')
        self._file = file
        self._before = "".join(parts).encode()
        self._after = f"\r\n--{boundary}--\r\n".encode()
        try:
            self.length_bytes = len(self._before) + file.stat().st_size + len(self._after)
        except OSError as error:
            raise UsageRefused(f"Cannot read {file}: {error.strerror}.") from error

    def __iter__(self) -> Iterator[bytes]:
        """The body in pieces."""
        yield self._before
        with self._file.open("rb") as content:
            while piece := content.read(PIECE_BYTES):
                yield piece
        yield self._after


Body: TypeAlias = "bytes | FormBody"


class Client:
    """Speaks to one API node."""

    def __init__(self, base_url: str, key: str | None, *, timeout_s: float = 60.0) -> None:
        parts = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageRefused(f"FARM_URL must look like {DEFAULT_URL}, not {base_url!r}.")
        self.base_url = f"{parts.scheme}://{parts.netloc}"
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._key = key
        self._timeout_s = timeout_s
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=CONNECT_TIMEOUT_S)

    @classmethod
    def from_environment(cls, *, timeout_s: float = 60.0) -> Client:
        """At FARM_URL, with FARM_API_KEY."""
        url = os.environ.get("FARM_URL") or DEFAULT_URL
        return cls(url, os.environ.get("FARM_API_KEY") or None, timeout_s=timeout_s)

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """GET and decode. Raises Unreachable, RequestFailed."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        return self._checked("GET", path + (f"?{urlencode(given)}" if given else ""))

    def post(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """POST and decode. Raises Unreachable, RequestFailed."""
        return self._checked("POST", path, None if body is None else json.dumps(body).encode(), headers)

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request, whatever its status. Raises Unreachable (not sent) or ConnectionLost (perhaps received)."""
        response = self._open(method, path, body, headers or {}, self._timeout_s)
        try:
            data = response.read()
        except _LOST as error:
            self.close()
            raise ConnectionLost(error) from error
        return Answer(response.status, _headers(response), data)

    def upload(self, path: str, file: Path, fields: Mapping[str, str]) -> Any:
        """POST a form with a file, read from the disk while it is sent. Raises Unreachable, RequestFailed."""
        form = FormBody(file, fields)
        headers = {"Content-Type": form.content_type, "Content-Length": str(form.length_bytes)}
        response = self._open("POST", path, form, headers, self._timeout_s)
        answer = Answer(response.status, _headers(response), response.read())
        if answer.status >= 400:
            raise RequestFailed(answer)
        return answer.json()

    def download(self, path: str) -> Iterator[bytes]:
        """GET, piece by piece. Raises Unreachable, RequestFailed, ConnectionLost."""
        response = self._open("GET", path, None, {}, self._timeout_s)
        if response.status >= 400:
            raise RequestFailed(Answer(response.status, _headers(response), response.read()))
        try:
            while piece := response.read(PIECE_BYTES):
                yield piece
        except _LOST as error:
            self.close()
            raise ConnectionLost(error) from error

    def stream(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[ServerEvent]:
        """Yield the events up to and with `[DONE]` or an error; an end without either is a lost connection.

        Raises Unreachable, RequestFailed, ConnectionLost.
        """
        data = None if body is None else json.dumps(body).encode()
        response = self._open(method, path, data, {"Accept": "text/event-stream", **(headers or {})}, STREAM_SILENCE_S)
        try:
            if response.status >= 400:
                raise RequestFailed(Answer(response.status, _headers(response), response.read()))
            for event in parse_events(response):
                yield event
                if event.is_last:
                    return
            raise ConnectionLost("it ended in mid-answer")  # http.client does not tell a torn stream from a whole one
        except _LOST as error:
            raise ConnectionLost(error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._connection.close()

    def _checked(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        answer = self.send(method, path, body, headers)
        if answer.status >= 400:
            raise RequestFailed(answer)
        return answer.json()

    def _open(
        self, method: str, path: str, body: Body | None, headers: Mapping[str, str], timeout_s: float
    ) -> http.client.HTTPResponse:
        reused = self._connection.sock is not None
        try:
            return self._request(method, path, body, headers, timeout_s)
        except _LOST as error:
            self.close()
            if not reused or not isinstance(error, _STALE):
                raise Unreachable(self.base_url, _reason(error)) from error
        try:  # the server may close an idle connection at any time: once more on a new one
            return self._request(method, path, body, headers, timeout_s)
        except _LOST as error:
            self.close()
            raise Unreachable(self.base_url, _reason(error)) from error

    def _request(
        self, method: str, path: str, body: Body | None, headers: Mapping[str, str], timeout_s: float
    ) -> http.client.HTTPResponse:
        connection = self._connection
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(timeout_s)
        own = {"User-Agent": "mlx-farm"}
        if body is not None:
            own["Content-Type"] = "application/json"
        if self._key:
            own["Authorization"] = f"Bearer {self._key}"
        connection.request(method, self._prefix + path, body, {**own, **headers})
        return connection.getresponse()


def parse_events(lines: Iterator[bytes] | http.client.HTTPResponse) -> Iterator[ServerEvent]:
    """Server-sent events from the lines of a stream; an event that its blank line did not end is dropped."""
    data: list[str] = []
    event_id = ""
    for raw in lines:
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        if not line:
            if data:
                yield ServerEvent("\n".join(data), event_id)
            data, event_id = [], ""
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            yield ServerEvent(comment=value)
        elif name == "data":
            data.append(value)
        elif name == "id":
            event_id = value


def segment(text: str) -> str:
    """Text as one segment of a path."""
    return quote(text, safe="")


def error_message(answer: Answer) -> str:
    """What an error response says, in the protocols' common shapes or as plain text."""
    try:
        value = json.loads(answer.body)
    except ValueError:
        return answer.body[:200].decode(errors="replace").strip() or "The request failed"
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return str(message or "The request failed")


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
