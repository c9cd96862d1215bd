"""Frames → server-sent events of the caller's protocol, with comments while nothing happens, and a proper end always.

The last event of a frame carries the frame's id as its `id:`; events that are not stored (opening, [DONE]) carry none.
Comments have no blank line behind them: the openai SDK takes `\\n\\n` after an id for an event without data.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Response
from starlette.types import Receive, Scope, Send

from api.departure import Departure
from api.errors import ApiError, Draining, api_error, end_error
from api.following import position
from api.metrics import AnswerMeter
from api.node import Node
from api.rendering import Event, Renderer
from scheduler.backpressure import Place
from scheduler.errors import FarmError, LogRewritten, QueueUnavailable
from scheduler.frames import START, End, Frame, FrameId
from scheduler.jobs import JobState

TICK_S = 1.0
"""How often a silent stream looks around: for a client that has left, a drain, a place in the queue."""

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

Frames = AsyncGenerator[Frame | None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """One job being answered. `meter` None: a replay, not to be counted.

    When the client leaves, the job goes on (`stays`) or is cancelled, at once or after `linger_s` without anybody.
    """

    node: Node
    job_id: str
    renderer: Renderer
    frames: Frames
    stays: bool
    linger_s: float = 0.0
    meter: AnswerMeter | None

    def client_left(self) -> None:
        """Cancel the job, unless it stays or this node is the one that leaves."""
        self.node.metrics.disconnects.inc()
        if self.meter is not None:
            self.meter.failed("abandoned")
        if not self.stays and not self.node.drain.draining:
            self.node.spawn(_leave(self.node, self.job_id, self.linger_s))

    def ended(self, end: End) -> None:
        """Count the end."""
        if self.meter is None:
            return
        if end.state is JobState.FINISHED:
            self.meter.finished(str(end.data.get("finish_reason") or "stop"), self.renderer.unparsed_calls)
        else:
            self.meter.failed(end.state.value)


class EventStream(Response):
    """Streams one job. `after` is the last frame that the client has seen: earlier ones are rendered silently."""

    def __init__(self, answering: Answering, headers: Mapping[str, str], after: FrameId = START) -> None:
        super().__init__(None, 200, {**STREAM_HEADERS, **headers}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._answering = answering
        self._after = after
        self._caught_up = after == START

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        answering = self._answering
        with answering.node.drain.answering():
            async with Departure(receive) as departure, aclosing(answering.frames):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async with aclosing(self._events(departure)) as events:
                    async for event in events:  # a client that takes nothing is cut off: api/connections.py
                        await send({"type": "http.response.body", "body": event, "more_body": True})
                if departure.gone:
                    answering.client_left()
                else:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, departure: Departure) -> AsyncGenerator[bytes, None]:
        """Everything the client gets; ends early when it has left."""
        answering = self._answering
        if self._after == START and (opening := answering.renderer.opening()):
            yield self._sse(opening, None)
        silence = _Silence(answering)
        try:
            async for frame in answering.frames:
                if departure.gone:
                    return
                if answering.node.drain.over:
                    yield b"retry: 1000\n" + self._failure(Draining(answering.job_id), None)
                    return
                if frame is None:
                    comment = await silence.comment()
                else:
                    silence.broken()
                    comment = self._frame(frame)
                if comment:
                    yield comment
        except FarmError as error:
            yield self._failure(api_error(error), None)

    def _frame(self, frame: Frame) -> bytes:
        """The events of one frame. Raises LogRewritten when the frame that the client has read last is lost."""
        answering = self._answering
        known = not self._caught_up
        if known and position(frame.id) > position(self._after):
            raise LogRewritten(answering.job_id)
        self._caught_up = self._caught_up or frame.id == self._after
        if isinstance(frame.body, End):
            answering.ended(frame.body)
            return b"" if known else self._end(frame.id, frame.body)
        if answering.meter is not None:
            answering.meter.frame()
        events = answering.renderer.step(frame.body)
        return b"" if known else self._sse(events, frame.id)

    def _end(self, frame_id: FrameId, end: End) -> bytes:
        if end.state is not JobState.FINISHED:
            return self._failure(end_error(end), frame_id)
        renderer = self._answering.renderer
        return self._sse(renderer.closing(end), frame_id) + renderer.dialect.done

    def _failure(self, error: ApiError, frame_id: FrameId | None) -> bytes:
        return self._sse(self._answering.renderer.failure(error), frame_id)

    def _sse(self, events: Sequence[Event], frame_id: FrameId | None) -> bytes:
        return sse(events, frame_id, named=self._answering.renderer.dialect.named)


class _Silence:
    """What to say while no frame comes: the place in the queue, or that the line is alive.

    The place is asked for at growing intervals: thousands that wait would keep the queue busy with nothing else.
    """

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._spoke_s = self._asked_s = time.monotonic()
        self._pause_s = 0.0
        self._place: Place | None = None
        self._model_said = ""
        self._waiting = True

    def broken(self) -> None:
        """A frame has come."""
        self._waiting = False
        self._spoke_s = time.monotonic()

    async def comment(self) -> bytes:
        """A comment line, or nothing if one was sent lately."""
        now_s, keepalive_s = time.monotonic(), self._answering.node.settings.keepalive_s
        due = now_s - self._spoke_s >= keepalive_s
        place = None
        if self._waiting and (due or now_s - self._asked_s >= self._pause_s):
            self._asked_s, self._pause_s = now_s, min(max(TICK_S, 2 * self._pause_s), keepalive_s)
            place = await self._ask()
        before, model_says = self._place, self._model_says(place)
        moved = place is not None and (before is None or place.position != before.position)
        if not due and not moved and model_says == self._model_said:
            return b""
        self._spoke_s, self._model_said = now_s, model_says
        self._place = place or before
        if place is not None or model_says:
            return _queued(self._place, model_says)
        return self._answering.renderer.dialect.keep_alive

    def _model_says(self, place: Place | None) -> str:
        """What a job waits for whose model is not in memory."""
        known = place or self._place
        model = self._answering.node.places.of(known.model) if known is not None and self._waiting else None
        return "" if model is None else model.said

    async def _ask(self) -> Place | None:
        try:
            return await self._answering.node.queue.place(self._answering.job_id)
        except QueueUnavailable:
            return None


def _queued(place: Place | None, model_says: str) -> bytes:
    """A comment with the place in the queue and, where it is known, when the turn comes and where the model is."""
    if place is None:
        return b""
    eta = "" if place.eta_s is None else f" eta_s={place.eta_s:.1f}"
    model = f" model={model_says}" if model_says else ""
    return f": queued position={place.position}{eta}{model}\n".encode()


class ClientLeft(Exception):
    """Nobody reads the answer any more."""


async def collect(answering: Answering, departure: Departure) -> dict[str, Any]:
    """Wait for a job's end and return the whole answer. Raises ApiError, ClientLeft, UnknownJob, RecordUnavailable."""
    with answering.node.drain.answering():
        async with aclosing(answering.frames) as frames:
            async for frame in frames:
                if departure.gone:
                    answering.client_left()
                    raise ClientLeft
                if answering.node.drain.over:
                    raise Draining(answering.job_id)
                if frame is not None and isinstance(frame.body, End):
                    answering.ended(frame.body)
                    return whole_answer(answering.renderer, frame.body)
                if frame is not None and not isinstance(frame.body, End):
                    if answering.meter is not None:
                        answering.meter.frame()
                    answering.renderer.step(frame.body)
    raise ApiError(500, "The job's frames ended without an end.")


def whole_answer(renderer: Renderer, end: End) -> dict[str, Any]:
    """The body of a finished job. Raises ApiError for any other end."""
    if end.state is not JobState.FINISHED:
        raise end_error(end)
    return renderer.whole(end)


async def _leave(node: Node, job_id: str, linger_s: float) -> None:
    """Cancel, now or later; without the queue it is left to the job's deadline."""
    with suppress(QueueUnavailable):
        if linger_s:
            await node.queue.leave(job_id, round(linger_s * 1000))
        else:
            await node.queue.cancel(job_id, "disconnect")


# U+0085, U+2028, U+2029: no ends of lines in the standard, but to clients that use `str.splitlines`, as httpx does.
_LINE_ENDS = re.compile(rb"\xc2\x85|\xe2\x80[\xa8\xa9]")


def sse(events: Sequence[Event], frame_id: FrameId | None, *, named: bool) -> bytes:
    """The events of one frame; https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    lines = []
    for event in events:
        if frame_id is not None and event is events[-1]:
            lines.append(f"id: {frame_id}\n".encode())
        if named:
            lines.append(b"event: " + event["type"].encode() + b"\n")
        lines.append(b"data: " + _LINE_ENDS.sub(_escaped, orjson.dumps(event)) + b"\n\n")
    return b"".join(lines)


def _escaped(found: re.Match[bytes]) -> bytes:
    return f"\\u{ord(found[0].decode()):04x}".encode()
