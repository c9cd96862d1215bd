"""Reads one answer while it grows: reasoning, text and tool calls in the order in which the model wrote them; pure.

All protocols render from this. What was read is a function of the whole text: cuts make no difference.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from api.rendering import RenderingNote
from api.segments import Markers, Piece, SegmentKind, SegmentSplitter
from api.tool_calls import CallReader, parse_call
from scheduler.frames import Chunk


class PartKind(StrEnum):
    """What a piece of an answer is."""

    REASONING = "reasoning"
    CONTENT = "content"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer. Of a call: its number from 0 and the next piece of its arguments; `name` begins it."""

    kind: PartKind
    text: str
    call: int = 0
    name: str | None = None


_PLAIN = {SegmentKind.REASONING: PartKind.REASONING, SegmentKind.CONTENT: PartKind.CONTENT}


class AnswerReader:
    """One choice. Feed it every chunk, in order, once."""

    def __init__(self, note: RenderingNote) -> None:
        self._splitter = SegmentSplitter(Markers(note.think, note.call), in_thinking=note.in_thinking)
        self._call_start, self._call_end = note.call or ("", "")
        self._single_call = note.single_call
        self._bound_calls = note.bound_calls
        self._reader = CallReader()
        self.calls = 0
        self.unparsed_calls = 0
        self.output_tokens = 0
        self.reasoning_tokens = 0
        self.finish_reason: str | None = None
        self.stop_string: str | None = None

    def feed(self, chunk: Chunk) -> list[Part]:
        """The parts that are certain now."""
        self.output_tokens += len(chunk.token_ids)
        if self._splitter.in_reasoning:
            self.reasoning_tokens += len(chunk.token_ids)
        text = chunk.text
        ends_call = self._single_call and chunk.stop_string == self._call_end
        if ends_call:
            text += self._call_end  # our own stop string: the call it ends is complete
        pieces = self._splitter.push(text)
        if chunk.finish_reason is not None:
            pieces += self._splitter.flush()
            self.finish_reason = chunk.finish_reason
            self.stop_string = None if ends_call else chunk.stop_string
        parts = [part for piece in pieces for part in self._read(piece)]
        if self._bound_calls and self._splitter.open_call is not None:
            parts += self._grow(self._splitter.open_call)
        return parts

    def _read(self, piece: Piece) -> list[Part]:
        """A call, or its text where it is broken; anything else as it is."""
        if piece.kind in _PLAIN:
            return [Part(_PLAIN[piece.kind], piece.text)]
        grown: list[Part] = []
        if self._bound_calls:
            grown = self._grow(piece.text)
            was_read, self._reader = self._reader.name is not None, CallReader()
            if was_read:  # perhaps cut off by its length: its arguments are what came
                return grown
        call = parse_call(piece.text) if piece.kind is SegmentKind.CALL else None
        if call is None:
            self.unparsed_calls += 1
            closing = self._call_end if piece.kind is SegmentKind.CALL else ""
            return [Part(PartKind.CONTENT, f"{self._call_start}{piece.text}{closing}")]
        return [self._begin(call.name, call.arguments)]

    def _grow(self, inside: str) -> list[Part]:
        """What is new of a call that is being written; nothing while its name is not known."""
        is_known = self._reader.name is not None
        arguments = self._reader.read(inside)
        if self._reader.name is None:
            return []
        if not is_known:
            return [self._begin(self._reader.name, arguments)]
        return [Part(PartKind.CALL, arguments, self.calls - 1)] if arguments else []

    def _begin(self, name: str, arguments: str) -> Part:
        self.calls += 1
        return Part(PartKind.CALL, arguments, self.calls - 1, name)


def call_digest(seed: str, call: int) -> str:
    """What makes a call's id: the same on every node, other for every call."""
    return hashlib.sha256(f"{seed}:{call}".encode()).hexdigest()[:24]
