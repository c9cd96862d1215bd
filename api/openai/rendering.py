"""Putting a job's frames into OpenAI's words: what all kinds share."""

from __future__ import annotations

import secrets
from typing import Any

from api.errors import ApiError
from api.rendering import Dialect, Event, RenderingNote, counted
from scheduler.frames import End

OPENAI_STREAM = Dialect(named=False, done=b"data: [DONE]\n\n", keep_alive=b": keep-alive\n")
"""Chat and text completions."""

LOWEST_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON cannot say."""

OBFUSCATION_BLOCK_CHARS = 32


def usage(note: RenderingNote, *, output_tokens: int, reasoning_tokens: int, end: End | None) -> dict[str, Any]:
    """OpenAI's usage object; what came from a cache is known at the `end`."""
    counts = counted(note, output_tokens, reasoning_tokens, end)
    cached_tokens = int(end.data.get("cached_tokens") or 0) if end else 0
    return {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.output_tokens,
        "total_tokens": counts.prompt_tokens + counts.output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
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


def error_events(error: ApiError) -> list[Event]:
    """The event with a truthy `error`, which the SDKs raise."""
    return [error.body()]
