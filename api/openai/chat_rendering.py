"""Frames as chat completions: deltas and messages with reasoning, tool calls and logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api.errors import ApiError
from api.openai.rendering import OPENAI_STREAM, error_events, finite, stream_extras, token_text, usage
from api.reading import AnswerReader, Part, PartKind, call_digest
from api.rendering import Dialect, Event, RenderingNote, TokenBytes
from scheduler.frames import Chunk, End


class _Choice:
    """One answer as it grows."""

    def __init__(self, job_id: str, index: int, note: RenderingNote) -> None:
        self.reader = AnswerReader(note)
        self._seed = f"{job_id}:{index}"
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[dict[str, Any]] = []

    @property
    def finish_reason(self) -> str | None:
        """In OpenAI's words; None while the answer grows."""
        called = bool(self.calls) and self.reader.finish_reason == "stop"
        return "tool_calls" if called else self.reader.finish_reason

    def feed(self, chunk: Chunk) -> dict[str, Any]:
        """Take a chunk in and return its delta."""
        content: list[str] = []
        reasoning: list[str] = []
        calls: list[dict[str, Any]] = []
        for part in self.reader.feed(chunk):
            if part.kind is PartKind.CONTENT:
                content.append(part.text)
            elif part.kind is PartKind.REASONING:
                reasoning.append(part.text)
            else:
                calls.append(self._call(part))
        self.content += content
        self.reasoning += reasoning
        delta: dict[str, Any] = {}
        if reasoning:
            delta["reasoning_content"] = delta["reasoning"] = "".join(reasoning)
        if content:
            delta["content"] = "".join(content)
        if calls:
            delta["tool_calls"] = calls
        return delta

    def message(self) -> dict[str, Any]:
        """The whole answer."""
        content = "".join(self.content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = message["reasoning"] = "".join(self.reasoning)
        if self.calls:
            message["content"] = content or None
            message["tool_calls"] = self.calls
        return message

    def _call(self, part: Part) -> dict[str, Any]:
        """Take a part of a call in and return its delta."""
        if part.name is None:
            self.calls[part.call]["function"]["arguments"] += part.text
            return {"index": part.call, "function": {"arguments": part.text}}
        call_id = part.call_id or f"call_{call_digest(self._seed, part.call)}"
        function = {"name": part.name, "arguments": part.text}
        self.calls.append({"id": call_id, "type": "function", "function": dict(function)})
        return {"index": part.call, "id": call_id, "type": "function", "function": function}


class ChatRenderer:
    """Implements Renderer for kind `chat.completions`."""

    def __init__(self, job_id: str, note: RenderingNote, token_bytes: TokenBytes) -> None:
        self._note = note
        self._token_bytes = token_bytes
        self._choices = [_Choice(job_id, index, note) for index in range(note.choices)]
        self._late_finishes: list[dict[str, Any]] = []
        self._head = {"id": f"chatcmpl-{job_id}", "created": note.created_s, "model": note.model}

    @property
    def unparsed_calls(self) -> int:
        """Tool calls that were shown as text."""
        return sum(choice.reader.unparsed_calls for choice in self._choices)

    @property
    def dialect(self) -> Dialect:
        """OpenAI's."""
        return OPENAI_STREAM

    def opening(self) -> list[Event]:
        """The role of every choice."""
        choices = [
            _choice_chunk(i, {"role": "assistant", "content": ""}, None, None) for i in range(self._note.choices)
        ]
        return [self._chunk(choices, chars=0)]

    def step(self, chunks: Sequence[Chunk]) -> list[Event]:
        """One frame as one chunk; a choice whose text is held back has an empty delta."""
        choices = []
        chars = 0
        for chunk in chunks:
            choice = self._choices[chunk.index]
            delta = choice.feed(chunk)
            logprobs = self._logprobs(chunk)
            choice.logprobs += logprobs or []
            finish_reason = choice.finish_reason if chunk.finish_reason is not None else None
            if finish_reason is not None and "tool_calls" in delta:
                self._late_finishes.append(_choice_chunk(chunk.index, {}, None, finish_reason))
                finish_reason = None
            choices.append(_choice_chunk(chunk.index, delta, logprobs, finish_reason))
            chars += len(chunk.text)
        return [self._chunk(choices, chars)]

    def closing(self, end: End) -> list[Event]:
        """The usage chunk, where the caller asked for it; and finish reasons that came together with a call.

        The openai SDK's stream helper sees a call's end only if the finish reason comes in a later chunk.
        """
        chunk = self._chunk(self._late_finishes, chars=0)
        if self._note.include_usage:
            return [chunk | {"usage": self._usage(end)}]
        return [chunk] if self._late_finishes else []

    def failure(self, error: ApiError) -> list[Event]:
        """One event."""
        return error_events(error)

    def whole(self, end: End) -> dict[str, Any]:
        """The chat completion object."""
        choices = [
            {
                "index": index,
                "message": choice.message(),
                "logprobs": {"content": choice.logprobs, "refusal": None} if self._note.logprobs else None,
                "finish_reason": choice.finish_reason or "stop",
            }
            for index, choice in enumerate(self._choices)
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "service_tier": self._note.service_tier,
            "choices": choices,
            "usage": self._usage(end),
        }

    def _chunk(self, choices: list[dict[str, Any]], chars: int) -> dict[str, Any]:
        note = self._note
        chunk = {
            **self._head,
            "object": "chat.completion.chunk",
            "service_tier": note.service_tier,
            "choices": choices,
        }
        return chunk | stream_extras(note, self._usage(None) if note.continuous_usage else None, chars)

    def _usage(self, end: End | None) -> dict[str, Any]:
        return usage(
            self._note,
            output_tokens=sum(choice.reader.output_tokens for choice in self._choices),
            reasoning_tokens=sum(choice.reader.reasoning_tokens for choice in self._choices),
            end=end,
        )

    def _logprobs(self, chunk: Chunk) -> list[dict[str, Any]] | None:
        if not self._note.logprobs or chunk.logprobs is None:
            return None
        return [
            self._token(token_id, logprob) | {"top_logprobs": [self._token(*pair) for pair in top]}
            for token_id, logprob, top in chunk.logprobs
        ]

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        piece = self._token_bytes(token_id)
        return {"token": token_text(piece), "logprob": finite(logprob), "bytes": list(piece)}


def _choice_chunk(
    index: int, delta: dict[str, Any], logprobs: list[dict[str, Any]] | None, finish_reason: str | None
) -> dict[str, Any]:
    """One entry of a chunk's `choices`."""
    return {
        "index": index,
        "delta": delta,
        "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
        "finish_reason": finish_reason,
    }
