"""Server-sent events out of bytes as they come, however they are cut; pure.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation; `id` and `retry` are nothing
to us.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from workers.providers.saying import Garbage

MAX_EVENT_BYTES = 8 * 2**20
"""An event, or a line, that is longer is no answer of a model."""

_LINE_END = re.compile(rb"\r\n|\n|\r(?=[\s\S])")  # a CR at the end may be half of one
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class SseEvent:
    """`name` is empty where the stream names none."""

    name: str
    data: str


class EventReader:
    """Feed bytes in order; an event without the empty line behind it was cut off and is none."""

    def __init__(self) -> None:
        self._held = b""
        self._name = ""
        self._data: list[str] = []
        self._size_bytes = 0
        self._begun = False

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that are complete now. Raises Garbage for one beyond bounds, and for what is no UTF-8."""
        self._held += data
        if not self._begun:
            if len(self._held) < len(_BOM) and _BOM.startswith(self._held):
                return []
            self._held, self._begun = self._held.removeprefix(_BOM), True
        events: list[SseEvent] = []
        start = 0
        for end in _LINE_END.finditer(self._held):
            event = self._line(self._held[start : end.start()])
            events += [event] if event is not None else []
            start = end.end()
        self._held = self._held[start:]
        if len(self._held) + self._size_bytes > MAX_EVENT_BYTES:
            raise Garbage(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return events

    def _line(self, line: bytes) -> SseEvent | None:
        if not line:
            return self._dispatch()
        try:
            field, _, value = line.decode().partition(":")
        except UnicodeDecodeError as error:
            raise Garbage("a stream that is no UTF-8") from error
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
            self._size_bytes += len(line)
        return None

    def _dispatch(self) -> SseEvent | None:
        name, data = self._name, self._data
        self._name, self._data, self._size_bytes = "", [], 0
        return SseEvent(name, "\n".join(data)) if data else None
