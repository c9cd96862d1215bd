"""Putting a job's frames into OpenAI's words: what all kinds share.

A rendering can be rebuilt on any node from the job's own note and its frames from the first on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from scheduler.frames import Chunk, End

TokenBytes = Callable[[int], bytes]
"""What one token id stands for."""

LOWEST_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON cannot say."""

OBFUSCATION_BLOCK_CHARS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderingNote:
    """What a renderer must know besides the frames; travels in `JobRequest.rendering`.

    `think` and `call` are the markers around reasoning and, where tools were offered, around calls.
    `bound_calls`: a grammar keeps calls in their format, so that their arguments can be told while they are written.
    `prompt_tokens` and `choices` are here because a stored result has no prompts any more.
    """

    created_s: int
    model: str
    choices: int
    prompt_tokens: int
    service_tier: str
    include_usage: bool = False
    continuous_usage: bool = False
    obfuscation: bool = False
    logprobs: bool = False
    think: tuple[str, str] | None = None
    in_thinking: bool = False
    call: tuple[str, str] | None = None
    single_call: bool = False
    bound_calls: bool = False
    echo: tuple[str, ...] = ()
    user: str | None = None
    metadata: dict[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JobRequest.rendering."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def of(rendering: Mapping[str, Any]) -> RenderingNote:
        """Inverse of `as_dict`; fields of newer writers are ignored."""
        known = {field.name for field in fields(RenderingNote)}
        return RenderingNote(**{key: value for key, value in rendering.items() if key in known})


class Renderer(Protocol):
    """One job in one protocol. Feed every frame, in order, once."""

    @property
    def unparsed_calls(self) -> int:
        """Tool calls that were shown as text because they could not be read."""

    def opening(self) -> dict[str, Any] | None:
        """The event before the first frame."""

    def step(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """One frame as one event: all its choices together."""

    def closing(self, end: End) -> dict[str, Any] | None:
        """The event after the last frame (usage), if the caller wants one."""

    def whole(self, end: End) -> dict[str, Any]:
        """The body of an answer that is not streamed."""


def usage(note: RenderingNote, *, output_tokens: int, reasoning_tokens: int, end: End | None) -> dict[str, Any]:
    """OpenAI's usage object; what came from a cache is known at the `end`."""
    cached_tokens = int(end.data.get("cached_tokens") or 0) if end else 0
    return {
        "prompt_tokens": note.prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": note.prompt_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def stream_extras(note: RenderingNote, usage_so_far: dict[str, Any] | None, chars: int) -> dict[str, Any]:
    """What the caller's stream_options add to a chunk with `chars` characters of text."""
    extras: dict[str, Any] = {}
    if note.continuous_usage or note.include_usage:
        extras["usage"] = usage_so_far
    if note.obfuscation:
        extras["obfuscation"] = obfuscation(chars)
    return extras


def obfuscation(chars: int) -> str:
    """Random characters that round an event's text up to whole blocks, so that its size tells little."""
    length = OBFUSCATION_BLOCK_CHARS - chars % OBFUSCATION_BLOCK_CHARS
    return secrets.token_urlsafe(length)[:length]


def token_text(piece: bytes) -> str:
    """A token as text; bytes that are no whole character appear as \\xNN."""
    return piece.decode("utf-8", "backslashreplace")


def finite(logprob: float) -> float:
    """A log probability that JSON can hold."""
    return max(logprob, LOWEST_LOGPROB)
