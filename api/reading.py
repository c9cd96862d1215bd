"""Reads one answer while it grows: reasoning, text and tool calls in the order in which the model wrote them; pure.

All protocols render from this. What was read is a function of the whole text: cuts make no difference.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum

from api.call_formats.known import call_format
from api.call_formats.parts import CallPart
from api.rendering import RenderingNote
from api.segments import Markers, Piece, SegmentKind, SegmentSplitter
from scheduler.frames import Chunk, estimated_tokens


class PartKind(StrEnum):
    """What a piece of an answer is."""

    REASONING = "reasoning"
    CONTENT = "content"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer. Of a call: its number from 0 and the next piece of its arguments; `name` begins it.

    `call_id` is the model's own name of a call, where its format has one.
    """

    kind: PartKind
    text: str
    call: int = 0
    name: str | None = None
    call_id: str | None = None


_PLAIN = {SegmentKind.REASONING: PartKind.REASONING, SegmentKind.CONTENT: PartKind.CONTENT}


class AnswerReader:
    """One choice. Feed it every chunk, in order, once."""

    def __init__(self, note: RenderingNote) -> None:
        self._format, self._types = call_format(note.call_format), note.argument_types
        markers = Markers(note.think, note.call, self._format.in_value)
        self._splitter = SegmentSplitter(markers, in_thinking=note.in_thinking)
        self._call_start, self._call_end = note.call or ("", "")
        self._single_call = note.single_call
        self._reader = self._format.reader(self._types)
        self._section_start = 0
        self._is_full = False
        self.calls = 0
        self.unparsed_calls = 0
        self.output_tokens = 0
        self.reasoning_tokens = 0
        self.finish_reason: str | None = None
        self.stop_string: str | None = None

    def feed(self, chunk: Chunk) -> list[Part]:
        """The parts that are certain now."""
        self.output_tokens += chunk.tokens
        if chunk.parts is not None:
            return self._told(chunk)
        if self._splitter.in_reasoning:
            self.reasoning_tokens += len(chunk.token_ids)
        text = chunk.text
        ends_call = self._single_call and bool(self._call_end) and chunk.stop_string == self._call_end
        if ends_call:
            text += self._call_end  # our own stop string: the call it ends is complete
        pieces = self._splitter.push(text)
        if chunk.finish_reason is not None:
            pieces += self._splitter.flush()
            self.finish_reason = chunk.finish_reason
            self.stop_string = None if ends_call else chunk.stop_string
        parts = [part for piece in pieces for part in self._read(piece)]
        if self._splitter.open_call is not None:
            parts += self._grow(self._splitter.open_call, whole=False)
        return _joined(parts)

    def _told(self, chunk: Chunk) -> list[Part]:
        """What a provider has told apart already."""
        parts = [
            Part(PartKind(kind), text, call, name, call_id) for kind, text, call, name, call_id in chunk.parts or ()
        ]
        self.calls += sum(part.name is not None for part in parts)
        thoughts = (part.text for part in parts if part.kind is PartKind.REASONING)
        self.reasoning_tokens += sum(map(estimated_tokens, thoughts))
        if chunk.finish_reason is not None:
            self.finish_reason, self.stop_string = chunk.finish_reason, chunk.stop_string
        return _joined(parts)

    def _read(self, piece: Piece) -> list[Part]:
        """The end of a section of calls, or its text where no call can be read; anything else as it is."""
        if piece.kind in _PLAIN:
            return [Part(_PLAIN[piece.kind], piece.text)]
        is_whole = piece.kind is SegmentKind.CALL or (not self._call_end and self.finish_reason == "stop")
        grown = self._grow(piece.text, whole=is_whole)
        was_read, is_broken = self._is_full or self.calls > self._section_start, self._reader.is_broken
        self._reader, self._section_start = self._format.reader(self._types), self.calls
        self.unparsed_calls += is_broken or not was_read
        if was_read:  # perhaps cut off by its length: its arguments are what came
            return grown
        closing = self._call_end if piece.kind is SegmentKind.CALL else ""
        return [Part(PartKind.CONTENT, f"{self._call_start}{piece.text}{closing}")]

    def _grow(self, inside: str, *, whole: bool) -> list[Part]:
        """What is new of a section of calls; those behind the only one that was wanted are left out."""
        parts = []
        for part in self._reader.read(inside, whole=whole):
            self._is_full = self._is_full or bool(part.name and self.calls and self._single_call)
            if not self._is_full:
                parts.append(self._call(part))
        return parts

    def _call(self, part: CallPart) -> Part:
        self.calls += part.name is not None
        return Part(PartKind.CALL, part.arguments, self.calls - 1, part.name, part.call_id)


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbours of one call put together: clients join pieces from one event to the next, not inside one."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and part.kind is last.kind is PartKind.CALL and part.call == last.call:
            joined[-1] = replace(last, text=last.text + part.text)
        else:
            joined.append(part)
    return joined


def call_digest(seed: str, call: int) -> str:
    """What makes a call's id: the same on every node, other for every call."""
    return hashlib.sha256(f"{seed}:{call}".encode()).hexdigest()[:24]
