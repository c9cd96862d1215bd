"""Frames as (legacy) text completions: texts, echo, and logprobs in four parallel lists."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from api.errors import ApiError
from api.openai.rendering import OPENAI_STREAM, error_events, finite, stream_extras, token_text, usage
from api.rendering import Dialect, Event, RenderingNote, TokenBytes
from scheduler.frames import Chunk, End


class _Choice:
    """One answer as it grows; `echo` is the prompt's text in front of it."""

    def __init__(self, echo: str) -> None:
        self._echo = echo
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoder, self._prompt_decoder = decoder("replace"), decoder("replace")
        self._echoed = 0  # characters of the prompt in front of its tokens that come next
        self._offset = len(echo)
        self.texts: list[str] = []
        self.logprobs: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        self.finish_reason: str | None = None
        self.output_tokens = 0

    def feed(self, chunk: Chunk) -> str:
        """Take a chunk in and return its text, the first one with the echo."""
        text = chunk.text if self.texts else self._echo + chunk.text
        self.texts.append(text)
        self.output_tokens += len(chunk.token_ids)
        self.finish_reason = chunk.finish_reason
        return text

    def feed_logprobs(self, chunk: Chunk, token_bytes: TokenBytes) -> dict[str, list[Any]]:
        """One chunk's logprobs, the prompt's first; `text_offset` counts characters from the start of the text."""
        part: dict[str, list[Any]] = {key: [] for key in self.logprobs}
        for token_id, logprob, top in chunk.prompt_logprobs or ():
            _add(part, token_id, logprob, top, self._echoed, token_bytes)
            self._echoed += self._echoed_chars(token_bytes(token_id))
        for token_id, logprob, top in chunk.logprobs or ():
            _add(part, token_id, logprob, top, self._offset, token_bytes)
            self._offset += len(self._decoder.decode(token_bytes(token_id)))
        for key, values in part.items():
            self.logprobs[key] += values
        return part

    def _echoed_chars(self, piece: bytes) -> int:
        """Of the prompt's next token; none of what is not in its text, like a mark in front of it."""
        text = self._prompt_decoder.decode(piece)
        return len(text) if self._echo.startswith(text, self._echoed) else 0


def _add(
    part: dict[str, list[Any]],
    token_id: int,
    logprob: float | None,
    top: Iterable[tuple[int, float]],
    offset: int,
    token_bytes: TokenBytes,
) -> None:
    """One token in OpenAI's four lists; the first of a prompt, which nothing predicts, has nulls."""
    part["tokens"].append(token_text(token_bytes(token_id)))
    part["token_logprobs"].append(None if logprob is None else finite(logprob))
    best = {token_text(token_bytes(i)): finite(p) for i, p in top}
    part["top_logprobs"].append(None if logprob is None else best)
    part["text_offset"].append(offset)


class CompletionRenderer:
    """Implements Renderer for kind `completions`."""

    def __init__(self, job_id: str, note: RenderingNote, token_bytes: TokenBytes) -> None:
        self._note = note
        self._token_bytes = token_bytes
        per_prompt = note.choices // len(note.echo) if note.echo else 1
        self._choices = [_Choice(note.echo[i // per_prompt] if note.echo else "") for i in range(note.choices)]
        self._head = {
            "id": f"cmpl-{job_id}",
            "object": "text_completion",
            "created": note.created_s,
            "model": note.model,
        }

    @property
    def unparsed_calls(self) -> int:
        """None: this protocol has no tools."""
        return 0

    @property
    def dialect(self) -> Dialect:
        """OpenAI's."""
        return OPENAI_STREAM

    def opening(self) -> list[Event]:
        """Completions have no opening event."""
        return []

    def step(self, chunks: Sequence[Chunk]) -> list[Event]:
        """One frame as one chunk."""
        choices = []
        chars = 0
        for chunk in chunks:
            choice = self._choices[chunk.index]
            text = choice.feed(chunk)
            logprobs = None
            if self._note.logprobs and chunk.logprobs is not None:
                logprobs = choice.feed_logprobs(chunk, self._token_bytes)
            choices.append(
                {"index": chunk.index, "text": text, "logprobs": logprobs, "finish_reason": chunk.finish_reason}
            )
            chars += len(text)
        return [self._chunk(choices, chars)]

    def closing(self, end: End) -> list[Event]:
        """The usage chunk, where the caller asked for it."""
        if not self._note.include_usage:
            return []
        return [{**self._chunk([], chars=0), "usage": self._usage(end)}]

    def failure(self, error: ApiError) -> list[Event]:
        """One event."""
        return error_events(error)

    def whole(self, end: End) -> dict[str, Any]:
        """The text completion object."""
        choices = [
            {
                "index": index,
                "text": "".join(choice.texts),
                "logprobs": choice.logprobs if self._note.logprobs else None,
                "finish_reason": choice.finish_reason or "stop",
            }
            for index, choice in enumerate(self._choices)
        ]
        return {
            **self._head,
            "service_tier": self._note.service_tier,
            "choices": choices,
            "usage": self._usage(end),
        }

    def _chunk(self, choices: list[dict[str, Any]], chars: int) -> dict[str, Any]:
        note = self._note
        chunk: dict[str, Any] = {**self._head, "choices": choices}
        return chunk | stream_extras(note, self._usage(None) if note.continuous_usage else None, chars)

    def _usage(self, end: End | None) -> dict[str, Any]:
        return usage(
            self._note,
            output_tokens=sum(choice.output_tokens for choice in self._choices),
            reasoning_tokens=0,
            end=end,
        )
