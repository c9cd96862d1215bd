"""A provider that does what the test says: a real HTTP server in the test's event loop, for both protocols."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

EVENTS = {"content-type": "text/event-stream"}


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """`parts` are sent one by one; before part `hold_before` the stand-in waits until the connection is closed or
    `StandIn.resume` is set. `drop` closes the connection behind them, without the end of the body.
    """

    parts: Sequence[bytes] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(EVENTS))
    hold_before: int | None = None
    drop: bool = False


class StandIn:
    """Answers with `replies`, one after the other; the last one again and again."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.requests: list[Received] = []
        self.resume = asyncio.Event()
        self.holding = asyncio.Event()
        self.left = asyncio.Event()  # somebody has closed the connection while an answer was held back
        self.address = ""
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://{self.address}/v1"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[StandIn]:
        """Listen."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        try:
            yield self
        finally:
            server.close()
            serving = list(self._serving)
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other end has left, or the test is over
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append(Received(head[0].split()[1], headers, orjson.loads(body or b"{}")))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        writer.write(f"HTTP/1.1 {reply.status} X\r\n".encode())
        for name, value in {**reply.headers, "transfer-encoding": "chunked"}.items():
            writer.write(f"{name}: {value}\r\n".encode())
        writer.write(b"\r\n")
        for index, part in enumerate(reply.parts):
            if index == reply.hold_before and not await self._held(reader):
                return False
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
        if reply.hold_before == len(reply.parts) and not await self._held(reader):
            return False
        if reply.drop:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _held(self, reader: asyncio.StreamReader) -> bool:
        """Wait; False: the other end has closed the connection."""
        self.holding.set()
        waiting = [asyncio.ensure_future(self.resume.wait()), asyncio.ensure_future(reader.read(1))]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        left = waiting[1].done() and not waiting[0].done()
        for task in waiting:
            task.cancel()
        if left:
            self.left.set()
        return not left


def sse(data: Any, name: str = "") -> bytes:
    """One event."""
    text = data if isinstance(data, str) else orjson.dumps(data).decode()
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def openai_answer(*texts: str, use: tuple[int, int, int] = (11, 3, 2), **last: Any) -> list[bytes]:
    """An answer in pieces; `use` is prompt, cached and output tokens."""
    prompt, cached, output = use
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", **last}]})
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}
    return [*(sse(chunk) for chunk in [*chunks, {"choices": [], "usage": usage}]), sse("[DONE]")]


def openai_calls(*calls: tuple[str, str, Sequence[str]], thought: str = "") -> list[bytes]:
    """Calls of tools: (id, name, pieces of arguments), behind a thought."""
    deltas: list[dict[str, Any]] = [{"reasoning_content": thought}] if thought else []
    for index, (call_id, name, pieces) in enumerate(calls):
        deltas.append(
            {"tool_calls": [{"index": index, "id": call_id, "function": {"name": name, "arguments": pieces[0]}}]}
        )
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in pieces[1:]]
    chunks = [sse({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
    return [*chunks, *openai_answer(finish_reason="tool_calls")]


def anthropic_answer(
    *blocks: tuple[dict[str, Any], Sequence[dict[str, Any]]],
    stop: str = "end_turn",
    use: tuple[int, int, int] = (8, 3, 2),
) -> list[bytes]:
    """Blocks with their deltas; `use` is plain input, input read from a cache, and output tokens."""
    plain, read, output = use
    usage = {
        "input_tokens": plain,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": 0,
        "output_tokens": 1,
    }
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"usage": usage}}, {"type": "ping"}]
    for index, (block, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    events.append({"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": output}})
    return [sse(event, event["type"]) for event in [*events, {"type": "message_stop"}]]


def text_block(*texts: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Text."""
    return {"type": "text", "text": ""}, [{"type": "text_delta", "text": text} for text in texts]


def thinking_block(*texts: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A thought, with its signature."""
    deltas = [{"type": "thinking_delta", "thinking": text} for text in texts]
    return {"type": "thinking", "thinking": ""}, [*deltas, {"type": "signature_delta", "signature": "c2ln"}]


def call_block(call_id: str, name: str, *pieces: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A call of a tool."""
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return {"type": "tool_use", "id": call_id, "name": name, "input": {}}, deltas
