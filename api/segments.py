"""Splits a model's text into reasoning, content and tool calls while it arrives; pure.

The result is a function of the whole text: where it is cut into chunks makes no difference (a property test).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class SegmentKind(StrEnum):
    """What a piece of text is for the client."""

    REASONING = "reasoning"
    CONTENT = "content"
    CALL = "call"
    """The whole inside of one tool call, without its markers."""
    OPEN_CALL = "open_call"
    """A tool call that the text left unfinished: its inside so far."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one kind; reasoning and content arrive in several pieces, calls whole."""

    kind: SegmentKind
    text: str


def _never(_inside: str, _at: int) -> bool | None:
    return False


@dataclass(frozen=True, slots=True)
class Markers:
    """The strings that separate segments. None: the model has no such segment, or it was not asked for.

    An empty end of a call: only the end of the text is one. `in_value(inside, at)`: an end marker at this place of it
    is part of a value, and ends nothing; None: that is not known yet.
    """

    think: tuple[str, str] | None = None
    call: tuple[str, str] | None = None
    in_value: Callable[[str, int], bool | None] = _never


class SegmentSplitter:
    """Feed text with `push`, end with `flush`. Line breaks next to a marker belong to the marker.

    A think block is recognised at the start of the text only (after white space), or as already open when the prompt
    ended inside one. Everything that could still become a marker is held back.
    """

    def __init__(self, markers: Markers, *, in_thinking: bool = False) -> None:
        self._markers = markers
        self._held = ""
        self._trim = in_thinking
        self._looked_until = 0
        self._doubtful_end: int | None = None
        if markers.think is None:
            self._read = self._read_content
        else:
            self._read = self._read_reasoning if in_thinking else self._read_start

    @property
    def in_reasoning(self) -> bool:
        """Is the text so far inside a think block?"""
        return self._read == self._read_reasoning

    @property
    def open_call(self) -> str | None:
        """The inside so far of a call that is being written, as far as it is certain to be inside."""
        if self._read != self._read_call:
            return None
        assert self._markers.call is not None
        certain = len(self._held) - _undecided(self._held, self._markers.call[1])
        return self._held[: certain if self._doubtful_end is None else min(certain, self._doubtful_end)]

    def push(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""
        self._held += text
        pieces: list[Piece] = []
        before = None
        while before != (self._read, self._held):  # until a reader neither consumes nor hands over
            before = (self._read, self._held)
            pieces += self._read()
        return pieces

    def flush(self) -> list[Piece]:
        """The end of the text: what was held back is what it looks like.

        A value that is still open was none: an end marker inside it was the call's end.
        """
        pieces: list[Piece] = []
        while self._read == self._read_call and self._doubtful_end is not None:
            pieces += self._end_call(self._doubtful_end)
            pieces += self.push("")
        held, self._held = self._held, ""
        if self._read == self._read_call:
            return [*pieces, Piece(SegmentKind.OPEN_CALL, held)]
        kind = SegmentKind.REASONING if self.in_reasoning else SegmentKind.CONTENT
        return [*pieces, Piece(kind, held)] if held else pieces

    def _read_start(self) -> list[Piece]:
        """Before the first visible character: is it a think block?"""
        assert self._markers.think is not None
        start = self._markers.think[0]
        visible = self._held.lstrip()
        if visible.startswith(start):
            self._held = visible[len(start) :]
            self._trim = True
            self._read = self._read_reasoning
        elif not start.startswith(visible):
            self._read = self._read_content
        return []

    def _read_reasoning(self) -> list[Piece]:
        assert self._markers.think is not None
        return self._read_until(self._markers.think[1], SegmentKind.REASONING)

    def _read_content(self) -> list[Piece]:
        return self._read_until(self._markers.call[0] if self._markers.call else None, SegmentKind.CONTENT)

    def _read_until(self, marker: str | None, kind: SegmentKind) -> list[Piece]:
        """Release text of this kind up to `marker`; at the marker hand over to the next reader."""
        if self._trim:
            self._held = self._held.lstrip("\r\n")
            self._trim = not self._held
        at = self._held.find(marker) if marker else -1
        if marker and at >= 0:
            text, self._held = self._held[:at].rstrip("\r\n"), self._held[at + len(marker) :]
            self._trim = True
            self._read = self._read_content if kind is SegmentKind.REASONING else self._read_call
        else:
            keep = _undecided(self._held, marker) if marker else 0
            text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return [Piece(kind, text)] if text else []

    def _read_call(self) -> list[Piece]:
        assert self._markers.call is not None
        end = self._markers.call[1]
        if not end:
            return []
        self._doubtful_end = None
        while (at := self._held.find(end, self._looked_until)) >= 0:
            is_inner = self._markers.in_value(self._held, at)
            if is_inner is None:
                self._doubtful_end = at
                return []
            if not is_inner:
                return self._end_call(at)
            self._looked_until = at + 1
        self._looked_until = max(self._looked_until, len(self._held) - len(end) + 1)
        return []

    def _end_call(self, at: int) -> list[Piece]:
        """The call ends with the marker at `at`."""
        assert self._markers.call is not None
        inside, self._held = self._held[:at], self._held[at + len(self._markers.call[1]) :]
        self._looked_until, self._doubtful_end = 0, None
        self._trim = True
        self._read = self._read_content
        return [Piece(SegmentKind.CALL, inside)]


def _undecided(text: str, marker: str) -> int:
    """Length of the end of `text` that may belong to a coming `marker`: line breaks, then a beginning of it."""
    length = next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)
    start = len(text) - length
    while start and text[start - 1] in "\r\n":  # no slices: a call may be long
        start -= 1
    return len(text) - start
