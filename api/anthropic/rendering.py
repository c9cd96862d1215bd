"""Frames as Anthropic's events and messages: blocks that follow each other, each whole before the next begins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from api.anthropic.errors import error_body
from api.anthropic.note import Display, MessagesNote
from api.anthropic.thoughts import signature
from api.errors import ApiError
from api.reading import AnswerReader, Part, PartKind, call_digest
from api.rendering import Dialect, Event, RenderingNote, TokenBytes, counted
from scheduler.frames import FILTERED, Chunk, End

ANTHROPIC_STREAM = Dialect(named=True, done=b"", keep_alive=b'event: ping\ndata: {"type":"ping"}\n\n')

TIERS = {"priority": "priority", "default": "standard", "flex": "batch"}
"""OpenAI's names of the lanes, and Anthropic's."""


@dataclass(slots=True)
class _Block:
    """One content block as it grows; `head` is its first appearance."""

    kind: PartKind
    head: dict[str, Any]
    call: int = -1
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class MessagesRenderer:
    """Implements Renderer for kind `messages`."""

    def __init__(self, job_id: str, note: RenderingNote, _token_bytes: TokenBytes) -> None:
        self._job_id = job_id
        self._note = note
        self._own = MessagesNote.of(note.extras)
        self._reader = AnswerReader(note)
        self._blocks: list[_Block] = []
        self._open: _Block | None = None
        self._space = ""

    @property
    def unparsed_calls(self) -> int:
        """Tool calls that were shown as text."""
        return self._reader.unparsed_calls

    @property
    def dialect(self) -> Dialect:
        """Named events without an end mark, pings in silence."""
        return ANTHROPIC_STREAM

    def opening(self) -> list[Event]:
        """The empty message; what came from a cache is known at the end."""
        return [{"type": "message_start", "message": self._message([], None, self._usage(None))}, {"type": "ping"}]

    def step(self, chunks: Sequence[Chunk]) -> list[Event]:
        """What one frame adds; nothing where its text is held back."""
        return [event for chunk in chunks for part in self._reader.feed(chunk) for event in self._part(part)]

    def closing(self, end: End) -> list[Event]:
        """The end of the last block, and of the message."""
        reason, stop_sequence = self._stop()
        usage = self._usage(end)
        del usage["service_tier"]
        delta = {"stop_reason": reason, "stop_sequence": stop_sequence}
        return [*self._close(), {"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]

    def failure(self, error: ApiError) -> list[Event]:
        """One event; it ends the stream."""
        return [error_body(error, None)]

    def whole(self, end: End) -> dict[str, Any]:
        """The message."""
        return self._message([self._content(block) for block in self._blocks], self._stop(), self._usage(end))

    def _part(self, part: Part) -> list[Event]:
        if self._own.silent or (part.kind is PartKind.REASONING and self._own.display is Display.HIDDEN):
            return []
        block, events = self._open, []
        if block is None or block.kind is not part.kind or (part.kind is PartKind.CALL and block.call != part.call):
            if part.kind is PartKind.CONTENT and not self._shows(part):
                return []
            events = [*self._close(), *self._begin(part)]
        text, self._space = self._space + part.text, ""
        return events + self._grow(text)

    def _shows(self, part: Part) -> bool:
        """A block of text begins with its first visible character; white space waits for one."""
        if part.text.strip():
            return True
        self._space += part.text
        return False

    def _begin(self, part: Part) -> list[Event]:
        head: dict[str, Any]
        if part.kind is PartKind.CONTENT:
            head = {"type": "text", "text": ""}
        else:
            self._space = ""
            head = {"type": "thinking", "thinking": "", "signature": ""}
        if part.kind is PartKind.CALL:
            call_id = part.call_id or f"toolu_{call_digest(self._job_id, part.call)}"
            head = {"type": "tool_use", "id": call_id, "name": part.name, "input": {}}
        self._open = _Block(part.kind, head, part.call)
        self._blocks.append(self._open)
        return [{"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": head}]

    def _grow(self, text: str) -> list[Event]:
        assert self._open is not None
        self._open.texts.append(text)
        if not text or (self._open.kind is PartKind.REASONING and self._own.display is Display.OMITTED):
            return []
        match self._open.kind:
            case PartKind.CONTENT:
                return [self._delta({"type": "text_delta", "text": text})]
            case PartKind.REASONING:
                return [self._delta({"type": "thinking_delta", "thinking": text})]
            case PartKind.CALL:
                return [self._delta({"type": "input_json_delta", "partial_json": text})]

    def _close(self) -> list[Event]:
        """End the open block, if there is one."""
        block, self._open = self._open, None
        if block is None:
            return []
        stop = {"type": "content_block_stop", "index": len(self._blocks) - 1}
        if block.kind is PartKind.REASONING:
            return [self._delta({"type": "signature_delta", "signature": self._signature(block)}), stop]
        return [stop]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _content(self, block: _Block) -> dict[str, Any]:
        """A whole block."""
        match block.kind:
            case PartKind.CONTENT:
                return block.head | {"text": block.text}
            case PartKind.CALL:
                return block.head | {"input": tool_input(block.text)}
            case PartKind.REASONING:
                shown = "" if self._own.display is Display.OMITTED else block.text
                return block.head | {"thinking": shown, "signature": self._signature(block)}

    def _signature(self, block: _Block) -> str:
        return signature(block.text, displayed=self._own.display is Display.SHOWN)

    def _stop(self) -> tuple[str, str | None]:
        """`stop_reason` and `stop_sequence`."""
        reader = self._reader
        if reader.finish_reason == "length":
            return ("model_context_window_exceeded" if self._own.context_bound else "max_tokens"), None
        if reader.finish_reason == FILTERED:
            return "refusal", None
        if reader.calls:
            return "tool_use", None
        if reader.stop_string is not None:
            return "stop_sequence", reader.stop_string
        return "end_turn", None

    def _message(
        self, content: list[dict[str, Any]], stop: tuple[str, str | None] | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        reason, stop_sequence = stop or (None, None)
        return {
            "id": f"msg_{self._job_id}",
            "type": "message",
            "role": "assistant",
            "model": self._note.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop_sequence,
            "usage": usage,
        }

    def _usage(self, end: End | None) -> dict[str, Any]:
        """The three parts of the prompt add up to it: read from the cache, written to it, neither."""
        data = end.data if end is not None else {}
        counts = counted(self._note, self._reader.output_tokens, self._reader.reasoning_tokens, end)
        read = min(int(data.get("cached_tokens") or 0), counts.prompt_tokens)
        written = min(int(data.get("cache_written_tokens") or 0), counts.prompt_tokens - read)
        return {
            "input_tokens": counts.prompt_tokens - read - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "output_tokens": 0 if self._own.silent else counts.output_tokens,
            "output_tokens_details": {"thinking_tokens": counts.reasoning_tokens},
            "service_tier": TIERS.get(self._note.service_tier, "standard"),
        }


def tool_input(arguments: str) -> dict[str, Any]:
    """A call's arguments; of one that was cut off, what is whole of it, as the SDKs read it."""
    try:
        parsed = json.loads(arguments)
    except ValueError:
        try:
            parsed = from_json(arguments or "{}", allow_partial=True)
        except ValueError:
            parsed = {}
    return parsed if isinstance(parsed, dict) else {}
